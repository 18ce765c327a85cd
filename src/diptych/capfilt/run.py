"""CapFilt: filters and re-captions the shards of a dataset, with any number of processes, resumably."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from diptych.capfilt.filter import OutputShard, ShardFilter
from diptych.capfilt.models import Captioner, Filter
from diptych.capfilt.score import ScoredShard, Scorer
from diptych.capfilt.shards import InputShard, Workers, check_output, input_shards
from diptych.capfilt.summary import write_summary
from diptych.config.capfilt import CapFilt
from diptych.inference.saved_model import RunError
from diptych.runs.load_model import load_model
from diptych.training.checkpoint import MODEL, check_same_settings
from diptych.training.distributed import pick_device, uses_bf16
from diptych.utils.io import DamagedFile, atomic_write, read_json
from diptych.utils.lock import locked
from diptych.utils.terminal import echo

SETTINGS = "capfilt.json"
CHANGEABLE = ("device", "workers")  # settings that may change when a run is resumed
FILTER_SETTINGS = ("min_itm", "min_cosine", "synthetic", "duplicate_cosine", "duplicates", "leaks", "scored")
"""Settings of the second pass only: with --scored they may differ from those of the first pass."""
Counts = dict[str, int]
Settings = dict[str, Any]


def capfilt(config: CapFilt, out: Path) -> Counts:
    """Writes ``out/NAME.tar`` for each shard, decisions.jsonl, similar.jsonl, skipped.jsonl and report.html.

    Returns the counts of `summary.write_summary`, on processes other than the main one an empty dict. torchrun's
    processes share the shards without communication: each waits for the files of the others.

    Raises DataError, RunError, CheckpointError, BadSample, DamagedFile, InUse, WriteError.
    """
    if not config.captioner and not config.filter:
        raise RunError("nothing to do: give --captioner RUN, --filter RUN, or both")
    workers, shards = Workers.here(), input_shards(config.data, config.split, config.shard_size, config.layout)
    check_output(shards, out)
    against = [replace(shard, name=f"against-{i:05d}") for i, shard in enumerate(_test_shards(config))]
    if {shard.name for shard in shards} & {shard.name for shard in against}:
        raise RunError(f"{config.data}: a shard's name begins with against-, as those of --against do; rename it")
    with locked(out) if workers.main else nullcontext():
        return _run(config, out, shards, against, workers)


def _run(
    config: CapFilt, out: Path, shards: Sequence[InputShard], against: Sequence[InputShard], workers: Workers
) -> Counts:
    settings = check_settings(config, shards, against, out)
    scored = Path(config.scored) if config.scored else out
    device = pick_device(config.device)
    if device.type == "cuda" and workers.world > 1:
        device = torch.device("cuda", workers.rank % torch.cuda.device_count())
    bf16 = uses_bf16(device, config.precision)
    _score(config, out, settings, shards, against, workers, device, bf16)
    wait_for([ScoredShard.of(scored, shard) for shard in (*shards, *against)], workers)
    own = {shard.name for shard in workers.share(shards) if not OutputShard.of(out, shard).done}
    with _bar("writing shards", len(shards), workers) as tick:
        shard_filter = ShardFilter(config, scored, against, device)
        for shard in shards if own else ():
            filtered = shard_filter.filter(shard)
            if shard.name in own:
                OutputShard.of(out, shard).write(filtered, shard.open())
                own.remove(shard.name)
            tick(1)
            if not own:
                break
    if not workers.main:
        return {}
    wait_for([OutputShard.of(out, shard) for shard in shards], workers)
    return write_summary(config, out, shards, against)


def _test_shards(config: CapFilt) -> list[InputShard]:
    return input_shards(config.against, config.against_split, config.shard_size) if config.against else []


def _score(
    config: CapFilt,
    out: Path,
    settings: Settings,
    shards: Sequence[InputShard],
    against: Sequence[InputShard],
    workers: Workers,
    device: torch.device,
    bf16: bool,
) -> None:
    """Runs the first pass on those of this process's shards that are not scored yet.

    Models are loaded only if such a shard exists, and nothing is written before they are known to be suitable.
    """
    own = workers.share([*((shard, False) for shard in shards), *((shard, True) for shard in against)])
    left = [(shard, test) for shard, test in own if not config.scored and not ScoredShard.of(out, shard).done]
    scorer = _load_scorer(config, device) if left else None
    (out / "parts").mkdir(parents=True, exist_ok=True)
    if workers.main and not (out / SETTINGS).is_file():
        with atomic_write(out / SETTINGS) as partial:
            partial.write_text(json.dumps(settings, indent=1))
    while not (out / SETTINGS).is_file():  # no part may exist in a folder without the settings that it was made with
        time.sleep(0.05)
    if scorer is None:
        return
    with scorer.computing(bf16), _bar("captioning and scoring", len(left), workers) as tick:
        for shard, test in left:
            (scorer.embed_images if test else scorer.score_pairs)(shard, ScoredShard.of(out, shard), tick)


def _load_scorer(config: CapFilt, device: torch.device) -> Scorer:
    """The captioner and the filter, loaded; a run that is both is loaded once. Raises RunError."""
    folders = dict.fromkeys(filter(None, (config.captioner, config.filter)))
    models = {folder: load_model(Path(folder), device) for folder in folders}
    captioner = Captioner(models[config.captioner], config) if config.captioner else None
    return Scorer(config, captioner, Filter(models[config.filter], config) if config.filter else None, device)


def check_settings(config: CapFilt, shards: Sequence[InputShard], against: Sequence[InputShard], out: Path) -> Settings:
    """The settings, weights and shards that define a run.

    Raises CheckpointError, RunError if `out` (or the folder `config.scored`) contains a run with others.
    """
    settings: Settings = {k: v for k, v in asdict(config).items() if k not in CHANGEABLE}
    runs = {name: settings[name] for name in ("captioner", "filter") if settings[name]}
    settings["weights"] = {name: fingerprint(Path(folder)) for name, folder in runs.items()}
    settings["shards"] = {shard.name: Path(shard.data).stat().st_size if shard.tar else shard.last for shard in shards}
    if config.scored:
        _check_scored(Path(config.scored), settings, [*shards, *against])
    if (out / SETTINGS).is_file():
        check_same_settings(out, _saved_settings(out), settings, {"scored": ""})
    elif any(OutputShard.of(out, shard).done for shard in shards):
        raise RunError(f"{out} contains shards that capfilt did not write; give another --out")
    return settings


def _check_scored(scored: Path, settings: Settings, shards: Sequence[InputShard]) -> None:
    """Raises CheckpointError, RunError if the scores in `scored` have other settings or are incomplete."""
    check_same_settings(scored, _first_pass(_saved_settings(scored)), _first_pass(settings))
    if left := sum(not ScoredShard.of(scored, shard).done for shard in shards):
        raise RunError(f"{scored}: {left} of {len(shards)} shards are not scored yet; let that run end first")


def _first_pass(settings: Settings) -> Settings:
    """The settings that the first pass depends on."""
    return {name: value for name, value in settings.items() if name not in FILTER_SETTINGS}


def _saved_settings(out: Path) -> Settings:
    try:
        return read_json(
            out / SETTINGS, {"data": str, "weights": {}, "shards": {}}, "give another folder, or remove this one"
        )
    except DamagedFile as error:
        raise RunError(str(error)) from None


def fingerprint(folder: Path) -> str:
    """A digest of a run's weights, which identifies the run wherever its folder is. Raises RunError."""
    path = folder / MODEL
    if not path.is_file():
        raise RunError(f"{folder}: no {MODEL} there; give the folder of a finished run")
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while data := file.read(1 << 24):
            digest.update(data)
    return digest.hexdigest()


def wait_for(files: Sequence[ScoredShard] | Sequence[OutputShard], workers: Workers) -> None:
    """Waits until all files exist. Where a process fails, torchrun stops the others."""
    left = [file for file in files if not file.done]
    if left and workers.main:
        echo(f"waiting for {len(left)} shards of other processes")
    while left:
        time.sleep(0.2)
        left = [file for file in left if not file.done]


@contextmanager
def _bar(what: str, total: int, workers: Workers) -> Iterator[Callable[[float], None]]:
    """A progress bar over shards with the time left, shown by the main process."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not workers.main) as progress:
        task = progress.add_task(what, total=total)
        yield lambda share: progress.advance(task, share)
