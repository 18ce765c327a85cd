"""Run folder: run.json (settings, facts of the data, versions) and the trained weights, written and read back."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import diptych
from diptych.checkpoints import digests
from diptych.checkpoints.digests import Damaged
from diptych.checkpoints.strict import load_strict
from diptych.config.run import Finetune, ImportedCheckpoint, Pretrain
from diptych.config.serialization import check_record, from_json, to_json
from diptych.data.tokenizers.tokenizer import vocabulary_file_name, vocabulary_in
from diptych.runs.check_inputs import RunError, check_run_folder
from diptych.utils.io import DamagedFile, atomic_write, check_digest, read_json, with_digest

RUN = {"kind": str, "run": {}, "facts": {}, "versions": {str: str}, "machine": str, "command": str}
"""Shape of run.json. The types of the parts are checked by `config.serialization.check_record` and `from_json`."""
KINDS = {"pretrain": Pretrain, "finetune": Finetune, "imported": ImportedCheckpoint}


def write_run(out: Path, run: Pretrain | Finetune | ImportedCheckpoint, facts: Mapping[str, Any]) -> None:
    """Writes run.json: all settings, facts counted in the data, versions, machine and command.

    The run's vocabulary file is copied into the folder under a name with its digest.

    Raises:
        DataError: the vocabulary file cannot be read.
        WriteError: a file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not isinstance(run, ImportedCheckpoint) and run.vocabulary:
        content = vocabulary_in(Path(run.vocabulary))
        run = replace(run, vocabulary=vocabulary_file_name(Path(run.vocabulary), content))
        with atomic_write(out / run.vocabulary) as path:
            path.write_bytes(content)
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
    with atomic_write(out / "run.json") as path:
        path.write_text(json.dumps(with_digest(record), indent=1))


def read_run(folder: Path) -> tuple[Pretrain | Finetune, dict[str, Any]]:
    """Settings and facts of the run in a folder.

    Raises:
        RunError: as `read_any`; or the folder contains an imported checkpoint that no recipe expresses.
    """
    run, facts = read_any(folder)
    if isinstance(run, ImportedCheckpoint):
        why = run.why or "it was imported by an earlier version: import it again"
        raise RunError(
            f"{folder} contains an imported {run.system} checkpoint ({run.task}) that can be exported but "
            f"neither scored nor started from: {why}"
        )
    return run, facts


def read_any(folder: Path) -> tuple[Pretrain | Finetune | ImportedCheckpoint, dict[str, Any]]:
    """Settings and facts of the run, or the imported checkpoint, in a folder.

    The path of a vocabulary is that of the copy in the folder.

    Raises:
        RunError: there is no run.json, it is damaged, or another version wrote it that this one does not read.
    """
    path = folder / "run.json"
    check_run_folder(folder)
    try:
        record = read_json(path, {}, "this is not a run that this version can read")
        check_record(record, diptych.__version__)
        if record["kind"] not in KINDS:
            raise ValueError(f"kind: expected {', '.join(KINDS)}, got {record['kind']!r:.60}")
        run, facts = from_json(KINDS[record["kind"]], record["run"]), record["facts"]
        check_digest(path, record)
        if not isinstance(run, ImportedCheckpoint) and run.vocabulary:
            run = replace(run, vocabulary=str(folder / Path(run.vocabulary).name))
        return run, facts
    except DamagedFile as error:
        raise RunError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: not a run that this version can read ({error})") from None


def ancestors(run: Pretrain | Finetune, max_runs: int = 10) -> str:
    """The chain of runs that the initial weights come from, each as "folder (recipe)"; "" for random weights.

    Args:
        max_runs: runs listed at most, as a chain may be a circle.
    """
    chain, start = [], run.init_from
    while start and len(chain) < max_runs:
        try:
            parent = read_any(Path(start))[0]
        except RunError:  # removed since, or unreadable
            chain.append(f"{start} (not found)")
            break
        name = parent.system if isinstance(parent, ImportedCheckpoint) else parent.recipe
        chain.append(f"{start} ({name})" if name else start)
        start = "" if isinstance(parent, ImportedCheckpoint) else parent.init_from
    return ", initialised from ".join(chain)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Trained weights of a run (model.safetensors). Raises RunError if there are none yet, or the file is damaged."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise RunError(f"{folder}: no model.safetensors there yet; start its command again to finish it")
    try:
        return digests.read(path)[0]
    except Damaged as error:
        raise RunError(f"{error}; train or import it again") from None


def load_run(module: nn.Module, folder: Path) -> nn.Module:
    """`module` with all trained weights of the run in `folder`; nothing is loaded if one is missing or does not fit."""
    load_strict(module, read_weights(folder), str(folder / "model.safetensors"))
    return module
