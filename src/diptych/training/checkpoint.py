"""Checkpoints: everything that an exact resume needs, in one file that is written atomically.

``DIR/checkpoint.safetensors`` contains weights and optimizer state as tensors, and the training state (step, settings,
running sums) as JSON in the header of the same file, so that the two cannot disagree. ``DIR/model.safetensors``
contains only the weights, for other programs to read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diptych.checkpoints import digests
from diptych.checkpoints.digests import CheckpointError, Damaged
from diptych.config.serialization import flatten
from diptych.protocols import student_of
from diptych.training.best import BEST_STATE
from diptych.training.distributed import distribute_like, full_tensor
from diptych.utils.io import FINDING_SCHEMA, NUMBER, SKIPPED_SCHEMA, DamagedFile, atomic_write, parse_json
from diptych.utils.state_dict import load_state, mismatch, named_weights

CHECKPOINT, MODEL = "checkpoint.safetensors", "model.safetensors"
STATE = "training_state"  # the key in the header of checkpoint.safetensors
PREVIOUS = "checkpoint.previous.safetensors"  # the checkpoint before, for when the last one is damaged
MINIMAL_STATE = {
    "step": int,
    "seconds?": NUMBER,
    "cursor?": {str: [int]},
    "evaluation_pending?": bool,
    "best?": BEST_STATE,
    "stopped_early?": bool,
}
LOOP_STATE = MINIMAL_STATE | {
    "seconds": NUMBER,
    "sums": {str: NUMBER},
    "num_summed": int,
    "num_samples": int,
    "num_skipped": int,
    "skipped": SKIPPED_SCHEMA,
    "identity": {},
    "findings": [FINDING_SCHEMA],
}
"""The shape of the training state: what every reader requires (MINIMAL_STATE), and what the training loop requires."""


def is_finished(state: Mapping[str, Any], steps: int) -> bool:
    """Whether a training state is that of a run that has made all of its `steps`, or was stopped early."""
    return state["step"] >= steps or state.get("stopped_early", False)


def save_weights(out: Path, module: nn.Module, main: bool = True, best: Mapping[str, Tensor] | None = None) -> Path:
    """Writes ``out/model.safetensors``: `utils.state_dict.named_weights`, which `checkpoints.strict` loads.

    Of a student with a momentum teacher, the student's weights. `main`, `best`: see `save`.
    """
    weights = gathered_weights(module, main)
    if main:
        save_tensors(out / MODEL, dict(best or weights))
    return out / MODEL


def gathered_weights(module: nn.Module, main: bool = True) -> dict[str, Tensor]:
    """The weights of `save_weights` on the CPU, unsharded; empty on ranks without `main`. Every rank must call it."""
    return _gather(named_weights(student_of(module)), main)


def save(
    out: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    training_state: Mapping[str, Any],
    main: bool = True,
    best: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes ``out/model.safetensors`` and ``out/checkpoint.safetensors``, unsharded.

    If there are `best` weights (`training.best`), the former contains them, and the checkpoint both.

    The checkpoint is read back before it replaces the one before, which becomes checkpoint.previous.safetensors. Where
    weights are sharded over ranks, every rank must call this; only the rank with `main` keeps the gathered tensors and
    writes them.

    The weights are written first, so that those of a finished run exist before its last checkpoint says that it is
    finished. The first checkpoint, however, is written before any weights: without a checkpoint they would be taken
    for those of another run.
    """
    tensors = {f"weight/{name}": t for name, t in named_weights(module).items()}
    for name, p in module.named_parameters():
        tensors |= {f"{key}/{name}": t for key, t in optimizer.state.get(p, {}).items()}
    last, state = gathered_weights(module, main), _gather(tensors, main)
    weights = dict(best or last)
    state |= {f"best/{name}": t for name, t in (best or {}).items()}
    if not main:
        return
    first = not (out / CHECKPOINT).exists()
    if not first:
        save_tensors(out / MODEL, weights)
    save_tensors(out / CHECKPOINT, state, {STATE: json.dumps(training_state, allow_nan=False)}, out / PREVIOUS)
    if first:
        save_tensors(out / MODEL, weights)


def _gather(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The unsharded tensors on the CPU, gathered one at a time; empty on ranks that do not `keep` them."""
    gathered = {}
    for name, t in tensors.items():
        full = full_tensor(t)
        if keep:
            gathered[name] = full.cpu().contiguous()
    return gathered


def save_tensors(
    into: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, keep: Path | None = None
) -> None:
    """Writes a safetensors file with its digest, which is checked before the file replaces the one at `into`.

    `keep`: where the replaced file is kept.
    """
    with atomic_write(into, keep) as path:
        save_file(tensors, path, metadata=digests.with_digest(tensors, metadata))
        digests.check(path)


def load(out: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Loads weights and optimizer state, in place, from the checkpoint in `out`. Returns its best weights, if any.

    Raises CheckpointError.
    """
    with _with_advice("remove it or use another folder"):
        tensors, _ = digests.read(out / CHECKPOINT)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, t in tensors.items():
        kind, _, name = key.partition("/")
        parts.setdefault(kind, {})[name] = t
    weights, best = parts.pop("weight", {}), parts.pop("best", {})
    _load_weights(out / CHECKPOINT, module, weights)
    parameters = dict(module.named_parameters())
    for kind, state in parts.items():
        for name, t in state.items():
            if name not in parameters or t.shape not in (torch.Size(), parameters[name].shape):
                raise CheckpointError(f"{out / CHECKPOINT}: {kind} of {name} does not fit the model; use another --out")
            p = parameters[name]
            # fused AdamW requires even the step count on the parameter's device
            optimizer.state[p][kind] = distribute_like(p, t.to(p.device, copy=True))
    return best


def load_saved_weights(out: Path, module: nn.Module) -> None:
    """Loads ``out/model.safetensors`` (`save_weights`), in place. Every rank must call it. Raises CheckpointError."""
    with _with_advice("remove it: the same command writes it again"):
        weights, _ = digests.read(out / MODEL)
    _load_weights(out / MODEL, student_of(module), weights)


def _load_weights(path: Path, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads the weights of a file, sharded like the module's. Raises CheckpointError if they do not fit."""
    if difference := mismatch(module, weights):
        raise CheckpointError(f"{path} does not fit: {difference}; use another --out")
    current = module.state_dict()
    load_state(module, {name: distribute_like(current[name], t) for name, t in weights.items()})


def read_training_state(out: Path, shape: Any = MINIMAL_STATE) -> dict[str, Any] | None:
    """The training state of the checkpoint in `out`; None without a checkpoint.

    Raises CheckpointError if the file is damaged or its state does not have `shape` (see `utils.io.parse_json`).
    """
    if not (out / CHECKPOINT).exists():
        return None
    with _with_advice("remove it or use another folder"):
        return read_training_state_file(out / CHECKPOINT, shape)


def read_training_state_file(path: Path, shape: Any = MINIMAL_STATE) -> dict[str, Any]:
    """The training state of a checkpoint file. Raises Damaged, CheckpointError."""
    metadata = digests.header(path)
    if STATE not in metadata:
        raise CheckpointError(f"{path} is not a training checkpoint; use another --out")
    try:
        return parse_json(metadata[STATE], shape, f"{path}, its state", "remove it or use another --out")
    except DamagedFile as error:
        raise Damaged(str(error)) from None


@contextmanager
def _with_advice(advice: str) -> Iterator[None]:
    """Adds advice to the error of a damaged file, which becomes a CheckpointError."""
    try:
        yield
    except Damaged as error:
        raise CheckpointError(f"{error}; {advice}") from None


def check_same_settings(
    out: Path, saved: Mapping[str, Any], current: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> None:
    """Raises CheckpointError, with the first differing field, if a run to resume has other settings than `current`.

    A run from before a field existed had the field's default. A field that was removed, or a new one without a default,
    is a difference. Two paths of one existing file or folder are equal.
    """
    was, now, default = (flatten(json.loads(json.dumps(tree))) for tree in (saved, current, defaults or {}))
    values = {
        name: (was.get(name, default.get(name, _NO_FIELD)), now.get(name, _NO_FIELD))
        for name in sorted(was.keys() | now.keys())
    }
    different = [name for name, pair in values.items() if not _same_value(*pair)]
    if different:
        name, before, after = _difference(different[0], *values[different[0]], was, now)
        advice = "continue it with the same value, or give another --out"
        if different == ["steps"]:
            advice = (
                "the steps of a run cannot be changed, because its learning-rate schedule depends on them; "
                f"--init_from {out} with another --out starts a new run from its weights"
            )
        raise CheckpointError(f"{out} contains a run with {name} = {before}, not {after}: {advice}")


_NO_FIELD = "(no such field)"
_SETTINGS = "(with settings)"


def _difference(
    name: str, before: Any, after: Any, was: Mapping[str, Any], now: Mapping[str, Any]
) -> tuple[str, Any, Any]:
    """The field to name and both values; of an optional part that one of the two runs lacks, the part as a whole."""
    parts = name.split(".")
    for part in (".".join(parts[: i + 1]) for i in range(len(parts))):
        if now.get(part, _NO_FIELD) is None and _has_fields(was, part):
            return part, _SETTINGS, "none"
        if was.get(part, _NO_FIELD) is None and _has_fields(now, part):
            return part, "none", _SETTINGS
    return name, before, after


def _has_fields(flat: Mapping[str, Any], part: str) -> bool:
    return any(name.startswith(f"{part}.") for name in flat)


def _same_value(before: Any, after: Any) -> bool:
    """Whether two settings are equal, or are paths of the same existing file or folder."""
    if before == after:
        return True
    if not (isinstance(before, str) and isinstance(after, str) and before and after):
        return False
    try:
        return os.path.samefile(before, after)
    except (OSError, ValueError):  # not paths, or none there
        return False
