"""Run folder: the log of a training run (run.json: settings, facts of the data, versions) beside the saved model."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import diptych
from diptych.config.run import Finetune, Pretrain, TrainingRun
from diptych.config.serialization import check_record, from_json, to_json
from diptych.inference.feature_extractors import frozen_sources
from diptych.inference.folder import with_vocabulary_in, write_config
from diptych.inference.saved_model import RunError, SavedModel, check_saved, read_config, vocabulary_from
from diptych.utils.io import DamagedFile, atomic_write, check_digest, read_json, with_digest

RUN_FILE = "run.json"
RUN = {"kind": str, "run": {}, "facts": {}, "versions": {str: str}, "machine": str, "command": str}
"""Shape of run.json. The types of the parts are checked by `config.serialization.check_record` and `from_json`."""
KINDS = {"pretrain": Pretrain, "finetune": Finetune}


def write_run(
    out: Path, run: Pretrain | Finetune, facts: Mapping[str, Any], heads: tuple[str, ...], labels: tuple[str, ...] = ()
) -> None:
    """Writes config.json, and run.json: all settings, facts counted in the data, versions, machine and command.

    The run's vocabulary file is copied into the folder under a name with its digest.

    Args:
        heads: names of the pre-training heads.
        labels: answers of vqa, or classes of classification.

    Raises:
        DataError: the vocabulary file cannot be read.
        WriteError: a file cannot be written.
    """
    write_config(out, saved_model(run, heads, labels))
    run = with_vocabulary_in(out, run)
    kind = next(name for name, cls in KINDS.items() if isinstance(run, cls))
    versions = {"diptych": diptych.__version__, "torch": torch.__version__, "python": platform.python_version()}
    record = {
        "kind": kind,
        "run": to_json(run),
        "facts": dict(facts),
        "versions": versions,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {platform.system()}",
        "command": " ".join(sys.argv),
    }
    with atomic_write(out / RUN_FILE) as path:
        path.write_text(json.dumps(with_digest(record), indent=1))


def saved_model(run: Pretrain | Finetune, heads: tuple[str, ...], labels: tuple[str, ...] = ()) -> SavedModel:
    """The content of a run's config.json. Arguments: see `write_run`."""
    pretrains = isinstance(run, Pretrain)
    return SavedModel(
        model=run.model,
        images=run.images,
        embedders=run.embedders,
        vocabulary=run.vocabulary,
        task="pretraining" if pretrains else run.task,
        heads=heads,
        losses=tuple(run.objectives.present()) if pretrains else (run.task,),
        labels=labels,
        options=None if pretrains else run.options,
        frozen_features=frozen_sources(run),
        recipe=run.recipe,
    )


def check_same_model(
    folder: Path, saved: SavedModel, run: Pretrain | Finetune, heads: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    """Raises RunError unless a folder's config.json, `saved`, is what its run.json describes. Others: see `write_run`."""
    if saved != saved_model(run, heads, labels):  # the weights would be read by it
        raise RunError(
            f"{folder}: run.json and config.json describe different models: restore the one that was changed"
        )


def read_run(folder: Path) -> tuple[Pretrain | Finetune, dict[str, Any]]:
    """Settings and facts of the training run in a folder. The path of a vocabulary is that of the copy in the folder.

    Raises:
        RunError: there is no run.json, it is damaged, or another version wrote it that this one does not read.
    """
    check_saved(folder)
    path = folder / RUN_FILE
    if not path.is_file():
        raise RunError(f"{folder} contains a model, but no {RUN_FILE}: it was not trained there")
    try:
        record = read_json(path, {}, "this is not a run that this version can read")
        check_record(record, diptych.__version__)
        if record["kind"] not in KINDS:
            raise ValueError(f"kind: expected {', '.join(KINDS)}, got {record['kind']!r:.60}")
        run = from_json(KINDS[record["kind"]], record["run"])
        check_digest(path, record)
        return vocabulary_from(folder, run), record["facts"]
    except DamagedFile as error:
        raise RunError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: not a run that this version can read ({error})") from None


def ancestors(run: TrainingRun, max_runs: int = 10) -> str:
    """The chain of runs that the initial weights come from, each as "folder (recipe)"; "" for random weights.

    Args:
        max_runs: runs listed at most, as a chain may be a circle.
    """
    chain, start = [], run.init_from
    while start and len(chain) < max_runs:
        folder, start = Path(start), ""
        try:
            parent = read_config(folder)
        except RunError:  # removed since, or unreadable
            chain.append(f"{folder} (not found)")
            break
        name = parent.imported.system if parent.imported else parent.recipe
        chain.append(f"{folder} ({name})" if name else f"{folder}")
        with suppress(RunError):  # an imported model was not trained there
            start = read_run(folder)[0].init_from
    return ", initialised from ".join(chain)
