"""Processes that make a loader's batches, and how they end."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from multiprocessing.queues import Queue
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from diptych.data.source import DataError, WorkerDied


def run(dataset: Dataset, keys: Iterable[Any], workers: int) -> Iterator[Any]:
    """``dataset[key]`` of every key, in order, made in worker processes (0: in this one). Raises DataError, WorkerDied."""
    made: Iterable[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=keys,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_calm_worker,
        generator=torch.Generator(),  # its own, so that opening a loader draws nothing from the model's
    )
    items = _begun(made)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error):
                raise
            raise WorkerDied(
                "a process that loads data was ended from outside, as the system does where memory runs out; give a lower "
                "--workers, and the same command goes on from the last checkpoint"
            ) from None
        if isinstance(item, DataError):
            raise item
        yield item


_TOLD = (signal.SIGINT, signal.SIGTERM)
_POSIX = os.name == "posix"


def _begun(made: Iterable[Any]) -> Iterator[Any]:
    """The loader's iterator, its workers begun. torch would have the death of a worker raised wherever this process is, be
    it in the midst of a checkpoint: that is given up, and it is found, within seconds, where the next batch is asked for.
    """
    if not _POSIX or threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        return iter(made)
    before = signal.getsignal(signal.SIGCHLD)
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, _TOLD)  # until a worker knows what to do with them
    try:
        return iter(made)
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)


@atexit.register  # behind multiprocessing's own, and so run before it
def _end_workers() -> None:
    """An error that nobody caught leaves a loader open. multiprocessing would tell its workers once to end, which they take for a
    scheduler's word (_calm_worker), and wait for them for ever.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _as_it_is(item: Any) -> Any:
    return item


def _calm_worker(_: int) -> None:
    """Ctrl-C is the main process's to handle, and so is a first SIGTERM, which schedulers send to all: the step that it
    ends with needs its data. At a second one the worker ends. One thread each, since workers are the parallelism.
    """
    told: list[int] = []

    def tell(number: int, _: object) -> None:
        if told:
            os._exit(128 + number)
        told.append(number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, tell)
    if _POSIX:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TOLD)
    torch.set_num_threads(1)
    Queue._on_queue_feeder_error = staticmethod(_not_handed_over)  # type: ignore[method-assign]


def _not_handed_over(error: Exception, _: Any) -> None:
    """Ends a worker that cannot hand a batch over, which its parent would otherwise wait for without end."""
    why = " ".join(str(error).split())
    told = f"diptych: shared memory took no batch of a data worker ({why}): give it more room (--shm-size, ulimit -f), or --workers 0"
    os.write(2, f"{told}\n".encode())
    os._exit(1)
