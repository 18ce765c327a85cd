"""Checkpoints: one file that is there whole or not at all, holding all that an exact continuation needs.

``DIR/checkpoint.safetensors`` holds weights and optimizer state as tensors, and the rest (step, settings, running
sums) as JSON in the same file's header, so that the two cannot disagree. ``DIR/model.safetensors`` holds the weights
alone, for others to read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from diptych.checkpoints import digests
from diptych.checkpoints.digests import CheckpointError, Damaged
from diptych.protocols import HasMissingDefaults, student_of
from diptych.training.distributed import divided_like, whole
from diptych.utils.io import FINDING, NUMBER, SKIPPED, DamagedFile, atomic_write, parse_json
from diptych.utils.state_dict import load_state, mismatch, named_weights

CHECKPOINT, MODEL = "checkpoint.safetensors", "model.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"  # the one before, which a damaged one falls back to
LEAST = {"step": int, "seconds?": NUMBER, "cursor?": {str: [int]}, "owes?": bool}
STATE = LEAST | {
    "seconds": NUMBER, "sums": {str: NUMBER}, "summed": int, "seen": int, "bad": int, "skipped": SKIPPED,
    "identity": {},
    "findings?": [FINDING],
}  # fmt: skip
"""What the loop needs of a checkpoint's JSON, and what others do of any."""


def save_weights(out: Path, module: nn.Module, main: bool = True) -> Path:
    """Writes ``out/model.safetensors``: `state.weights`, which `weights.strict.load_strict` loads; of a student beside its
    teacher the student's. `main`: see `save`.
    """
    held = _collected(named_weights(student_of(module)), main)
    if main:
        save_tensors(out / MODEL, held)
    return out / MODEL


def save(
    out: Path, module: nn.Module, optimizer: torch.optim.Optimizer, rest: Mapping[str, Any], main: bool = True
) -> None:
    """Writes ``out/model.safetensors`` and ``out/checkpoint.safetensors``, whole files each, whatever was divided. The
    checkpoint that was there before is kept as checkpoint.previous.safetensors; the new one is read back first.

    Where weights are divided over ranks every rank must call it; only the one that is `main` keeps them, and writes.
    The weights come first, so that those of a finished run stand before its last checkpoint says that it is finished; but a
    first checkpoint comes before any weights, which without one would be taken for those of another run.
    """
    tensors = {f"weight/{name}": t for name, t in named_weights(module).items()}
    for name, p in module.named_parameters():
        tensors |= {f"{key}/{name}": t for key, t in optimizer.state.get(p, {}).items()}
    trained, state = _collected(named_weights(student_of(module)), main), _collected(tensors, main)
    if not main:
        return
    first = not (out / CHECKPOINT).exists()
    if not first:
        save_tensors(out / MODEL, trained)
    save_tensors(out / CHECKPOINT, state, {"rest": json.dumps(rest, allow_nan=False)}, out / PREVIOUS)
    if first:
        save_tensors(out / MODEL, trained)


def _collected(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """All of each tensor, one after the other; nothing on ranks that do not `keep` them."""
    found = {}
    for name, t in tensors.items():
        held = whole(t) if isinstance(t, DTensor) else t
        if keep:
            found[name] = held.cpu().contiguous()
    return found


def save_tensors(
    into: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, keep: Path | None = None
) -> None:
    """Writes a file with its digest, and reads it back before it takes the place of the one before."""
    with atomic_write(into, keep) as path:
        save_file(tensors, path, metadata=digests.with_digest(tensors, metadata))
        digests.check(path)


def load(out: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fills weights and optimizer state from the checkpoint in `out`. Raises CheckpointError."""
    with _advised("remove it or use another folder"):
        tensors, _ = digests.read(out / CHECKPOINT)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, t in tensors.items():
        kind, _, name = key.partition("/")
        parts.setdefault(kind, {})[name] = t
    held = _missing_defaults(module) | parts.pop("weight", {})
    if told := mismatch(module, held):
        raise CheckpointError(f"{out / CHECKPOINT} does not fit: {told}; use another --out")
    into = module.state_dict()
    load_state(module, {name: divided_like(into[name], t) for name, t in held.items()})
    parameters = dict(module.named_parameters())
    for kind, held in parts.items():
        for name, t in held.items():
            if name not in parameters or t.shape not in (torch.Size(), parameters[name].shape):
                raise CheckpointError(f"{out / CHECKPOINT}: {kind} of {name} does not fit the model; use another --out")
            p = parameters[name]
            # AdamW's fused kernels want even the step count on the parameter's device
            optimizer.state[p][kind] = divided_like(p, t.to(p.device, copy=True))


def _missing_defaults(module: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint that is older than a part of the module need not hold."""
    parts = [
        (f"{path}." if path else "", part)
        for path, part in module.named_modules()
        if isinstance(part, HasMissingDefaults)
    ]
    return {f"{prefix}{name}": tensor for prefix, part in parts for name, tensor in part.missing_defaults().items()}


def rest(out: Path, shape: Any = LEAST) -> dict[str, Any] | None:
    """What the checkpoint in `out` holds besides tensors, which must have `shape`; None where there is no checkpoint. Raises
    CheckpointError.
    """
    if not (out / CHECKPOINT).exists():
        return None
    with _advised("remove it or use another folder"):
        return rest_of(out / CHECKPOINT, shape)


def rest_of(path: Path, shape: Any = LEAST) -> dict[str, Any]:
    """Raises Damaged, CheckpointError."""
    metadata = digests.header(path)
    if "rest" not in metadata:
        raise CheckpointError(f"{path} is no training checkpoint; use another --out")
    try:
        return parse_json(metadata["rest"], shape, f"{path}, its state", "remove it or use another --out")
    except DamagedFile as error:
        raise Damaged(str(error)) from None


@contextmanager
def _advised(what_to_do: str) -> Iterator[None]:
    """Adds what to do to what is said of a damaged file."""
    try:
        yield
    except Damaged as error:
        raise CheckpointError(f"{error}; {what_to_do}") from None


def refuse_other_settings(
    out: Path, held: Mapping[str, Any], asked: Mapping[str, Any], usual: Mapping[str, Any] | None = None
) -> None:
    """Raises CheckpointError naming the first field in which a run to be continued differs from the one asked for.

    A run from before a field existed had its `usual` value, and one number where there are several now was each of them. A
    field that exists no more, or a new one without a usual value, is a difference.
    """
    was, now, default = (_flat(json.loads(json.dumps(tree))) for tree in (held, asked, usual or {}))
    for name in sorted(was.keys() | now.keys()):
        before, after = was.get(name, default.get(name, _NO_FIELD)), now.get(name, _NO_FIELD)
        if isinstance(after, list) and isinstance(before, int | float):
            before = [before] * len(after)
        if before != after:
            raise CheckpointError(
                f"{out} holds a run with {name} = {before}, not {after}: "
                "continue it with the same value, or give another --out"
            )


_NO_FIELD = "(no such field)"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
