"""Checkpoints: one file that is there whole or not at all, holding all that an exact continuation needs.

``DIR/checkpoint.safetensors`` holds weights and optimizer state as tensors, and the rest (step, settings, running
sums) as JSON in the same file's header, so that the two cannot disagree. ``DIR/model.safetensors`` holds the weights
alone, for others to read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from diptych.state import fill, misfit, weights
from diptych.step import Grown, pupil
from diptych.train.sharded import divided_like, whole

CHECKPOINT, MODEL = "checkpoint.safetensors", "model.safetensors"


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message says which, where and what to do."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` once it is written and on disk; until then `path` stands."""
    partial = path.with_name(path.name + ".partial")
    try:
        usual = _mode_here(partial)
        yield partial
        partial.chmod(usual)  # safetensors' own files can be read by nobody else
        _to_disk(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        _to_disk(path.parent)


def _mode_here(path: Path) -> int:
    """The mode of a new file, as the user and the folder want it; what a stopped run left at `path` may have another."""
    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode
    path.unlink()
    return mode


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_weights(out: Path, module: nn.Module, main: bool = True) -> Path:
    """Writes ``out/model.safetensors``: `state.weights`, which `weights.strict.load_strict` loads; of a student beside its
    teacher the student's. `main`: see `save`.
    """
    _write(out / MODEL, _collected(weights(pupil(module)), main), main)
    return out / MODEL


def save(
    out: Path, module: nn.Module, optimizer: torch.optim.Optimizer, rest: Mapping[str, Any], main: bool = True
) -> None:
    """Writes ``out/checkpoint.safetensors``, then ``out/model.safetensors``: one whole file each, whatever was divided.

    Where weights are divided over ranks every rank must call it; only the one that is `main` keeps them, and writes.
    """
    tensors = {f"weight/{name}": t for name, t in weights(module).items()}
    for name, p in module.named_parameters():
        tensors |= {f"{key}/{name}": t for key, t in optimizer.state.get(p, {}).items()}
    _write(out / CHECKPOINT, _collected(tensors, main), main, {"rest": json.dumps(rest, allow_nan=False)})
    save_weights(out, module, main)


def _collected(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """All of each tensor, one after the other; nothing on ranks that do not `keep` them."""
    found = {}
    for name, t in tensors.items():
        held = whole(t).cpu() if isinstance(t, DTensor) else t
        if keep:
            found[name] = held.contiguous()
    return found


def _write(into: Path, tensors: dict[str, Tensor], main: bool, metadata: dict[str, str] | None = None) -> None:
    if main:
        with written_whole(into) as path:
            save_file(tensors, path, metadata=metadata)


def load(out: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fills weights and optimizer state from the checkpoint in `out`. Raises CheckpointError."""
    tensors, _ = _read(out / CHECKPOINT)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, t in tensors.items():
        kind, _, name = key.partition("/")
        parts.setdefault(kind, {})[name] = t
    held = _unsaid(module) | parts.pop("weight", {})
    if told := misfit(module, held):
        raise CheckpointError(f"{out / CHECKPOINT} does not fit: {told}; use another --out")
    into = module.state_dict()
    fill(module, {name: divided_like(into[name], t) for name, t in held.items()})
    parameters = dict(module.named_parameters())
    for kind, held in parts.items():
        for name, t in held.items():
            if name not in parameters or t.shape not in (torch.Size(), parameters[name].shape):
                raise CheckpointError(f"{out / CHECKPOINT}: {kind} of {name} does not fit the model; use another --out")
            p = parameters[name]
            # AdamW's fused kernels want even the step count on the parameter's device
            optimizer.state[p][kind] = divided_like(p, t.to(p.device, copy=True))


def _unsaid(module: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint that is older than a part of the module need not hold."""
    parts = [(f"{path}." if path else "", part) for path, part in module.named_modules() if isinstance(part, Grown)]
    return {f"{prefix}{name}": tensor for prefix, part in parts for name, tensor in part.unsaid().items()}


def rest(out: Path) -> dict[str, Any] | None:
    """What the checkpoint in `out` holds besides tensors; None where there is no checkpoint."""
    if not (out / CHECKPOINT).exists():
        return None
    _, header = _read(out / CHECKPOINT, tensors=False)
    try:
        return json.loads(header["rest"])
    except (KeyError, ValueError):
        raise CheckpointError(f"{out / CHECKPOINT} is no training checkpoint; use another --out") from None


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


def _read(path: Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()} if tensors else {}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); remove it or use another folder") from None
