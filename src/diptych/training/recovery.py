"""Resuming: locks a run folder for one process, and falls back to the previous checkpoint if the last is damaged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from diptych.checkpoints import digests
from diptych.checkpoints.digests import CheckpointError, Damaged
from diptych.training.checkpoint import CHECKPOINT, MODEL, PREVIOUS, read_training_state, read_training_state_file
from diptych.training.distributed import Group
from diptych.utils.lock import locked
from diptych.utils.terminal import echo

DAMAGED = "checkpoint.damaged.safetensors"


@contextmanager
def locked_run_folder(out: Path, group: Group) -> Iterator[None]:
    """Locks a run folder against other processes and makes its checkpoint usable (`restore_previous_checkpoint`).

    Every rank must enter it. Raises InUse, CheckpointError.
    """
    with locked(out) if group.main else nullcontext(False) as acquired:
        if acquired and (message := restore_previous_checkpoint(out)):
            echo(message)
        group.wait()  # other ranks read the checkpoint only now
        yield


def restore_previous_checkpoint(out: Path) -> str:
    """Replaces a damaged or missing checkpoint by the one before it; returns a message, ``""`` if nothing was done.

    Raises CheckpointError if neither is intact.
    """
    path, before = out / CHECKPOINT, out / PREVIOUS
    damage = _damage(path) if path.exists() else f"{path} is missing" if before.exists() else ""
    if not damage:
        return ""
    if not before.exists():
        raise CheckpointError(f"{damage}, and none before it is there: remove it to begin anew, or give another --out")
    if other := _damage(before):
        raise CheckpointError(f"{damage}; {other} too: remove both to begin anew, or give another --out")
    if path.exists():
        os.replace(path, out / DAMAGED)
        damage += f" (kept as {DAMAGED})"
    os.replace(before, path)
    step = (read_training_state(out) or {}).get("step")
    return f"{damage}: going on from the checkpoint before it, of step {step}"


def _damage(path: Path) -> str:
    """The damage of a checkpoint file; ``""`` if it is intact."""
    try:
        digests.check(path)
        read_training_state_file(path)
    except Damaged as error:
        return str(error)
    return ""


def needs_weights(out: Path, finished: bool) -> bool:
    """Whether ``out/model.safetensors`` must be written from the checkpoint.

    True if it is missing, or if it is damaged in an unfinished run, which will rewrite it anyway. The
    weights of a finished run are never replaced. Raises CheckpointError if they are damaged.
    """
    path = out / MODEL
    if not path.exists():
        return True
    try:
        digests.check(path)
        return not finished and not digests.has_digest(path)
    except Damaged as error:
        if finished:
            raise CheckpointError(f"{error}; remove it, and the same command writes it from {CHECKPOINT}") from None
        return True
