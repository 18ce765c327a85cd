"""Bootstrapping a set of pairs: from shards to shards, by as many processes as there are, going on where they stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from diptych.capfilt.filter import Decider, Shard
from diptych.capfilt.models import Captioner, Filter, subject
from diptych.capfilt.score import Part, Scorer
from diptych.capfilt.shards import Unit, Workers, outside, units
from diptych.capfilt.summary import finish
from diptych.config.capfilt import CapFilt
from diptych.modules.tokens import packing
from diptych.runs.run_folder import RunError
from diptych.runs.scoring.base import EvaluatedModel
from diptych.training.checkpoint import MODEL, refuse_other_settings
from diptych.training.distributed import pick_device, takes_bf16
from diptych.utils.io import DamagedFile, atomic_write, read_json
from diptych.utils.lock import locked
from diptych.utils.terminal import echo

SETTINGS = "bootstrap.json"
CHANGEABLE = ("device", "workers")  # between a run that was stopped and the one that goes on
DECIDES = (
    "match_over",
    "cosine_over",
    "synthetic",
    "alike_over",
    "duplicates",
    "leaks",
    "scored",
)  # after the first pass
Counts = dict[str, int]
Settings = dict[str, Any]


def capfilt(asked: CapFilt, out: Path) -> Counts:
    """Writes ``out/NAME.tar`` for each unit of the data, decisions.jsonl, similar.jsonl, skipped.jsonl and report.html.

    Several processes (torchrun's) share the units and need not speak with each other: each waits for the others' files.
    Raises DataError, RunError, CheckpointError, BadSample, DamagedFile, InUse, NotWritten.
    """
    if not asked.captioner and not asked.filter:
        raise RunError("nothing to do: give --captioner RUN, --filter RUN, or both")
    workers, found = Workers.here(), units(asked.data, asked.split, asked.shard_size)
    outside(found, out)
    against = [Unit(f"against-{i:05d}", u.data, u.split, u.first, u.last, u.tar) for i, u in enumerate(_tests(asked))]
    if {unit.name for unit in found} & {unit.name for unit in against}:
        raise RunError(f"{asked.data}: a shard's name begins with against-, as those of --against do; rename it")
    with locked(out) if workers.main else nullcontext():
        return _bootstrap(asked, out, found, against, workers)


def _bootstrap(asked: CapFilt, out: Path, found: Sequence[Unit], against: Sequence[Unit], workers: Workers) -> Counts:
    told, scored = settled(asked, found, against, out), Path(asked.scored) if asked.scored else out
    device = pick_device(asked.device)
    if device.type == "cuda" and workers.world > 1:
        device = torch.device("cuda", workers.rank % torch.cuda.device_count())
    bf16 = takes_bf16(device, asked.precision)
    with torch.no_grad(), packing(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        _judge(asked, out, told, found, against, workers, device)
    await_all([Part.of(scored, unit) for unit in (*found, *against)], workers)
    own = {unit.name for unit in workers.share(found) if not Shard.of(out, unit).done}
    with _bar("writing shards", len(found), workers) as tick:
        sorter = Decider(asked, scored, against, device)
        for unit in found if own else ():
            kept = sorter.sort(unit)
            if unit.name in own:
                Shard.of(out, unit).write(kept, unit.open())
                own.remove(unit.name)
            tick(1)
            if not own:
                break
    if not workers.main:
        return {}
    await_all([Shard.of(out, unit) for unit in found], workers)
    return finish(asked, out, found, against)


def _tests(asked: CapFilt) -> list[Unit]:
    return units(asked.against, asked.against_split, asked.shard_size) if asked.against else []


def _judge(
    asked: CapFilt, out: Path, told: Settings, found: Sequence[Unit], against: Sequence[Unit], workers: Workers,
    device: torch.device,
) -> None:  # fmt: skip
    """The first pass over this process's share, as far as it is not there yet. Runs are loaded only where there is any, and
    nothing is written before they are known to fit.
    """
    own = workers.share([*((unit, False) for unit in found), *((unit, True) for unit in against)])
    left = [(unit, test) for unit, test in own if not asked.scored and not Part.of(out, unit).done]
    judge = _roles(asked, device) if left else None
    (out / "parts").mkdir(parents=True, exist_ok=True)
    if workers.main and not (out / SETTINGS).is_file():
        with atomic_write(out / SETTINGS) as partial:
            partial.write_text(json.dumps(told, indent=1))
    while not (out / SETTINGS).is_file():  # so that no part ever lies in a folder that does not say what it is of
        time.sleep(0.05)
    if judge is None:
        return
    with _bar("captioning and judging", len(left), workers) as tick:
        for unit, test in left:
            (judge.images if test else judge.pairs)(unit, Part.of(out, unit), tick)


def _roles(asked: CapFilt, device: torch.device) -> Scorer:
    """The runs, loaded; one that is both but once. Raises RunError."""
    opened: dict[str, EvaluatedModel] = {}

    def role(folder: str) -> EvaluatedModel:
        if folder not in opened:
            opened[folder] = subject(Path(folder), asked, device)
        return opened[folder]

    captioner = Captioner(role(asked.captioner), asked) if asked.captioner else None
    return Scorer(asked, captioner, Filter(role(asked.filter), asked) if asked.filter else None, device)


def settled(asked: CapFilt, found: Sequence[Unit], against: Sequence[Unit], out: Path) -> Settings:
    """What a run that goes on must share with the one that began. Raises CheckpointError, RunError where it does not."""
    told: Settings = {k: v for k, v in asdict(asked).items() if k not in CHANGEABLE}
    told["weights"] = {name: fingerprint(Path(folder)) for name in ("captioner", "filter") if (folder := told[name])}
    told["shards"] = {unit.name: Path(unit.data).stat().st_size if unit.tar else unit.last for unit in found}
    if asked.scored:
        _refuse_other_scores(Path(asked.scored), told, [*found, *against])
    if (out / SETTINGS).is_file():
        refuse_other_settings(out, _held(out), told, {"scored": ""})
    elif any(Shard.of(out, unit).done for unit in found):
        raise RunError(f"{out} holds shards that no bootstrap wrote; give another --out")
    return told


def _refuse_other_scores(scored: Path, told: Settings, units: Sequence[Unit]) -> None:
    """Raises CheckpointError, RunError where what was scored there is not what is asked for, or not all of it yet."""
    refuse_other_settings(scored, _first(_held(scored)), _first(told))
    if left := sum(not Part.of(scored, unit).done for unit in units):
        raise RunError(f"{scored}: {left} of {len(units)} shards are not scored yet; let that run end first")


def _first(told: Settings) -> Settings:
    """The settings that the first pass hangs on."""
    return {name: value for name, value in told.items() if name not in DECIDES}


def _held(out: Path) -> Settings:
    try:
        return read_json(
            out / SETTINGS, {"data": str, "weights": {}, "shards": {}}, "give another folder, or remove this one"
        )
    except DamagedFile as error:
        raise RunError(str(error)) from None


def fingerprint(folder: Path) -> str:
    """A digest of a run's weights: an output folder is of one captioner and one filter, not of two by the same name."""
    path = folder / MODEL
    if not path.is_file():
        raise RunError(f"{folder}: no {MODEL} there; give the folder of a finished run")
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while data := file.read(1 << 24):
            digest.update(data)
    return digest.hexdigest()


def await_all(files: Sequence[Part] | Sequence[Shard], workers: Workers) -> None:
    """Until every process has written its own. Where one stops with an error torchrun stops the others."""
    left = [file for file in files if not file.done]
    if left and workers.main:
        echo(f"waiting for {len(left)} parts of other processes")
    while left:
        time.sleep(0.2)
        left = [file for file in left if not file.done]


@contextmanager
def _bar(what: str, total: int, workers: Workers) -> Iterator[Callable[[float], None]]:
    """A progress bar over units, with the time left; of the first process alone."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not workers.main) as progress:
        task = progress.add_task(what, total=total)
        yield lambda share: progress.advance(task, share)
