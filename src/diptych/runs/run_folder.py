"""A run's folder: what was run, on what, with what; and how to have its model back."""

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
from diptych.data.tokenizers.tokenizer import called, held_in
from diptych.models.configs import CoCaConfig
from diptych.runs.validate import RunError, check_run_folder
from diptych.utils.io import DamagedFile, atomic_write, check_digest, read_json, with_digest

RUN = {"kind": str, "run": {}, "facts": {}, "versions": {str: str}, "machine": str, "command": str}
"""What run.json holds; of what type each part is: `kept.check_record`, `kept.thaw`."""
KINDS = {"pretrain": Pretrain, "finetune": Finetune, "imported": ImportedCheckpoint}


def write_run(out: Path, run: Pretrain | Finetune | ImportedCheckpoint, facts: Mapping[str, Any]) -> None:
    """run.json: the resolved run, what was counted in its data, and where it ran; a vocabulary's file goes with it, called by
    its digest. Raises DataError where that cannot be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not isinstance(run, ImportedCheckpoint) and run.vocabulary:
        held = held_in(Path(run.vocabulary))
        run = replace(run, vocabulary=called(Path(run.vocabulary), held))
        with atomic_write(out / run.vocabulary) as path:
            path.write_bytes(held)
    kind = next(name for name, cls in KINDS.items() if isinstance(run, cls))
    versions = {"diptych": diptych.__version__, "torch": torch.__version__, "python": platform.python_version()}
    told = {
        "kind": kind,
        "run": to_json(run),
        "facts": dict(facts),
        "versions": versions,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {platform.system()}",
        "command": " ".join(sys.argv),
    }
    with atomic_write(out / "run.json") as path:
        path.write_text(json.dumps(with_digest(told), indent=1))


def read_run(folder: Path) -> tuple[Pretrain | Finetune, dict[str, Any]]:
    """The run a folder holds, and its facts. Raises RunError, also where it is but an imported checkpoint."""
    run, facts = read_any(folder)
    if isinstance(run, ImportedCheckpoint):
        why = run.why or "it was imported before others of its kind were made runs: import it again"
        raise RunError(
            f"{folder} holds an imported {run.system} checkpoint ({run.task}) that can be exported, but neither scored nor "
            f"started from: {why}"
        )
    return run, facts


def read_any(folder: Path) -> tuple[Pretrain | Finetune | ImportedCheckpoint, dict[str, Any]]:
    """What a folder holds, and its facts; its vocabulary is the file in that folder. Raises RunError."""
    path = folder / "run.json"
    check_run_folder(folder)
    try:
        told = read_json(path, {}, "this is not a run that this version can read")
        check_record(told, diptych.__version__)
        if told["kind"] not in KINDS:
            raise ValueError(f"kind: {told['kind']!r:.60} is none of {', '.join(KINDS)}")
        run, facts = from_json(KINDS[told["kind"]], told["run"]), told["facts"]
        check_digest(path, told)
        if not isinstance(run, ImportedCheckpoint) and run.vocabulary:
            run = replace(run, vocabulary=str(folder / Path(run.vocabulary).name))
        return _as_it_read(run), facts
    except DamagedFile as error:
        raise RunError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: not a run that this version can read ({error})") from None


def _as_it_read(run: Pretrain | Finetune | ImportedCheckpoint) -> Pretrain | Finetune | ImportedCheckpoint:
    """A CoCa that foretold words read single ones, before that had a name of its own."""
    if (
        isinstance(run, Pretrain)
        and isinstance(run.model, CoCaConfig)
        and run.objectives.lm
        and run.embedders.text == "minilm"
    ):
        return replace(run, embedders=replace(run.embedders, text="minilm_words"))
    return run


def ancestors(run: Pretrain | Finetune, most: int = 10) -> str:
    """What a run starts from, and what that started from: folders, each with its recipe; "" where it begins untrained."""
    told, start = [], run.init_from
    while start and len(told) < most:
        try:
            before = read_any(Path(start))[0]
        except RunError:  # it has gone since
            told.append(f"{start} (not there)")
            break
        name = before.system if isinstance(before, ImportedCheckpoint) else before.recipe
        told.append(f"{start} ({name})" if name else start)
        start = "" if isinstance(before, ImportedCheckpoint) else before.init_from
    return ", which began from ".join(told)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The trained weights of a run. Raises RunError where it has none yet, or the file is broken."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise RunError(f"{folder}: no model.safetensors there yet; start its command again to finish it")
    try:
        return digests.read(path)[0]
    except Damaged as error:
        raise RunError(f"{error}; train or import it again") from None


def load_run(module: nn.Module, folder: Path) -> nn.Module:
    """A run's module with its trained weights, every one of them."""
    load_strict(module, read_weights(folder), str(folder / "model.safetensors"))
    return module
