"""The folder of a run as its next process finds it: held by that process alone, and with a whole checkpoint to go on from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from diptych.checkpoints import digests
from diptych.checkpoints.digests import CheckpointError, Damaged
from diptych.training.checkpoint import CHECKPOINT, MODEL, PREVIOUS, rest, rest_of
from diptych.training.distributed import Group
from diptych.utils.lock import locked
from diptych.utils.terminal import echo

DAMAGED = "checkpoint.damaged.safetensors"


@contextmanager
def claimed(out: Path, group: Group) -> Iterator[None]:
    """Holds a run's folder against other runs, its checkpoint whole (`settle`), once every rank is here. Raises InUse,
    CheckpointError.
    """
    with locked(out) if group.main else nullcontext(False) as taken:
        if taken and (said := settle(out)):
            echo(said)
        group.wait()  # the others read what is settled
        yield


def settle(out: Path) -> str:
    """Puts the previous checkpoint in the place of one that is damaged or missing; a sentence on that, "" where there was no
    need. Raises CheckpointError where there is nothing whole to go on from.
    """
    path, before = out / CHECKPOINT, out / PREVIOUS
    why = _wrong(path) if path.exists() else f"{path} is missing" if before.exists() else ""
    if not why:
        return ""
    if not before.exists():
        raise CheckpointError(f"{why}, and none before it is there: remove it to begin anew, or give another --out")
    if worse := _wrong(before):
        raise CheckpointError(f"{why}; {worse} too: remove both to begin anew, or give another --out")
    if path.exists():
        os.replace(path, out / DAMAGED)
        why += f" (kept as {DAMAGED})"
    os.replace(before, path)
    return f"{why}: going on from the checkpoint before it, of step {(rest(out) or {}).get('step')}"


def _wrong(path: Path) -> str:
    """What is wrong with a checkpoint file; "" where it is what was written."""
    try:
        digests.check(path)
        rest_of(path)
    except Damaged as error:
        return str(error)
    return ""


def lacks_weights(out: Path, finished: bool) -> bool:
    """Whether ``out/model.safetensors`` is to be written from the checkpoint: it is missing, or, where the run goes on and writes
    it anew anyway, not whole. Those of a finished run are never replaced. Raises CheckpointError where they are damaged.
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
