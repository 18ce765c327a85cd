"""What was skipped on the way to a batch, and the share of bad samples at which a run stops.

The order in which examples are visited: in training deterministic, length-aware, and known at any point without history.

Processes that make a loader's batches, and how they end.

The pipeline of every job: examples to batches in worker processes, the same batches however many workers or ranks.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing.queues import Queue
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from diptych.batch import Batch
from diptych.data.examples import Examples
from diptych.data.sources.base import BadSample, DataError, Skipped, WorkerDied
from diptych.utils.rng import permutation, random_words


@dataclass(frozen=True)
class Loaded:
    """A batch, and what was skipped on the way to it."""

    batch: Batch
    skipped: tuple[Skipped, ...] = ()
    cursor: Mapping[str, list[int]] = field(default_factory=dict)  # where a stream stands behind it, lane by lane


class SkipCounter:
    """Counts bad samples, and stops the run where they are more than `limit` of all."""

    def __init__(self, limit: float = 0.01):
        self.limit = limit
        self.seen = self.bad = 0
        self.listed: dict[int, Skipped] = {}  # each bad sample once, however many epochs meet it

    def add(self, samples: int, skipped: Sequence[Skipped]) -> None:
        """Counts good samples and bad ones, and checks, leniently while fewer than 1,000 were seen. Raises DataError."""
        self.listed |= {s.id: s for s in skipped}
        self.bad += len(skipped)
        self.seen += samples + len(skipped)
        self.check(least=1000)

    def check(self, least: int = 1) -> None:
        """Raises DataError, with the head of the list, where the share of bad samples is over the limit."""
        if self.bad > self.limit * max(self.seen, least):
            head = "; ".join(f"{s.where}: {s.why}" for s in list(self.listed.values())[:5])
            raise DataError(
                f"{self.bad} of {self.seen} samples could not be used, more than {self.limit:.1%} "
                f"(first: {head}); repair the data, or raise --max_skipped (a share)"
            )


class BatchSampler:
    """Which examples each global batch holds.

    Every epoch is a permutation keyed by (seed, epoch); within pools of `pool` batches examples are sorted by length
    and the batches then shuffled, so that a batch holds texts of like length. What does not fill a batch waits for
    another epoch. Nothing depends on the number of ranks or workers, nor on what was asked before.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, seed: int, batch_size: int, pool: int = 50):
        self.lengths, self.seed, self.batch, self.pool = np.asarray(lengths), seed, batch_size, pool
        self.per_epoch = len(self.lengths) // batch_size
        if not self.per_epoch:
            raise DataError(
                f"a batch of {batch_size} is more than all {len(self.lengths)} examples; lower the batch size"
            )
        self._epoch = lru_cache(2)(self._plan)

    def ids_of(self, k: int) -> np.ndarray:
        """The `batch` examples of global batch k = 0, 1, …"""
        epoch, place = divmod(k, self.per_epoch)
        return self._epoch(epoch)[place]

    def _plan(self, epoch: int) -> np.ndarray:
        """All batches of an epoch, ``(per_epoch, batch)``."""
        ids = permutation(self.seed, epoch, len(self.lengths))[: self.per_epoch * self.batch]
        pools = np.split(ids, range(self.pool * self.batch, len(ids), self.pool * self.batch))
        ids = np.concatenate([p[np.argsort(self.lengths[p], kind="stable")] for p in pools])
        return ids.reshape(self.per_epoch, self.batch)[permutation(self.seed, epoch, self.per_epoch, "batches")]

    def __getstate__(self):
        return {k: v for k, v in vars(self).items() if k != "_epoch"}

    def __setstate__(self, state):
        vars(self).update(state)
        self._epoch = lru_cache(2)(self._plan)


class Shuffled:
    """Examples in an order drawn by `seed`, each drawn for by its own id as before.

    In the order of the data a batch holds all captions of each picture, which losses that compare samples take for others'.
    """

    def __init__(self, examples: Examples, seed: int):
        self.examples, self.ids = examples, permutation(seed, 0, len(examples), "held out")

    def __len__(self) -> int:
        return len(self.examples)

    def length(self, index: int) -> int:
        return self.examples.length(int(self.ids[index]))

    def load(self, index: int, seed: int, step: int) -> Any:
        return self.examples.load(int(self.ids[index]), seed, step)

    def collate(self, loaded: list[Any], ids: Sequence[int], seed: int, step: int) -> Batch:
        return self.examples.collate(loaded, self.ids[list(ids)].tolist(), seed, step)


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


TRIES = 16  # replacements drawn for a bad sample before giving up


def training_loader(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    start: int,
    steps: int,
    rank: int = 0,
    world: int = 1,
    grad_accum: int = 1,
    workers: int = 2,
) -> Iterator[list[Loaded]]:
    """For each optimizer step in ``start … steps − 1``, the micro-batches of this rank (`accumulate` of them).

    `batch` is the global batch: a rank takes a contiguous part of it. A bad sample is replaced by another, keyed by its
    id. Raises DataError.
    """
    if batch_size % (world * grad_accum):
        raise DataError(
            f"a batch of {batch_size} does not divide into {world} ranks x {grad_accum} micro-batches; change one"
        )
    lengths = [examples.length(i) for i in range(len(examples))]
    dataset = _Steps(examples, BatchSampler(lengths, seed, batch_size), rank, world, grad_accum)
    return run(dataset, range(start, steps), workers)


def evaluation_loader(
    examples: Examples, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1, workers: int = 2
) -> Iterator[Loaded]:
    """Every example once, in order, for evaluation; rank r takes every `world`-th batch. Bad samples are left out.

    A last example by itself goes with the batch before: what compares samples needs another. A batch with nothing readable in
    it is not given; what it skipped is reported with the next one, or the last.
    """
    held: Loaded | None = None
    waiting: tuple[Skipped, ...] = ()
    starts = range(0, len(examples) - (len(examples) > batch_size > 1), batch_size)
    parts = [range(at, len(examples) if at == starts[-1] else at + batch_size) for at in starts]
    for made, skipped in run(_Chunks(examples, seed), parts[rank::world], workers):
        waiting += skipped
        if made is None:
            continue
        if held is not None:
            yield held
        held, waiting = Loaded(made, waiting), ()
    if held is not None:
        yield replace(held, skipped=held.skipped + waiting)
    elif waiting:
        raise DataError(f"no example of {len(waiting)} can be used (first: {waiting[0].where}: {waiting[0].why})")


def rate(examples: Examples, *, workers: int, seed: int = 0, samples: int = 64) -> str:
    """How fast examples are made: what the run's log says about its data."""
    each = samples_per_second(examples, seed, samples)
    return f"{max(1, workers)} x {each:.0f} samples/s ({workers} workers)"


def samples_per_second(
    examples: Examples, seed: int = 0, samples: int = 64, clock: Callable[[], float] = time.perf_counter
) -> float:
    """How fast examples are made, measured in this process."""
    ids = permutation(seed, 0, len(examples), "rate")[:samples].tolist()
    began = clock()
    for first in range(0, len(ids), 16):
        _chunk(examples, ids[first : first + 16], seed)
    return len(ids) / (clock() - began)


class _Steps(Dataset):
    """Step → micro-batches."""

    def __init__(self, examples: Examples, order: BatchSampler, rank: int, world: int, accumulate: int):
        self.examples, self.order = examples, order
        self.rank, self.world, self.accumulate = rank, world, accumulate

    def __getitem__(self, step: int) -> list[Loaded] | DataError:
        ids = self.order.ids_of(step).reshape(self.world, self.accumulate, -1)[self.rank]
        try:
            return [self._micro(part.tolist(), step) for part in ids]
        except DataError as error:  # given as a value: torch would wrap its message in a worker's traceback
            return error

    def _micro(self, ids: list[int], step: int) -> Loaded:
        seed = self.order.seed
        kept, used, skipped = [], [], []
        for first in ids:
            others = random_words(seed, step, [first], "replacement", TRIES)[0] % len(self.examples)
            for index in (first, *others.tolist()):
                try:
                    kept.append(self.examples.load(index, seed, step))
                    used.append(index)
                    break
                except BadSample as bad:
                    skipped.append(Skipped(index, bad.where, bad.why))
            else:
                raise DataError(
                    f"{TRIES + 1} samples in a row could not be used (last: {skipped[-1].where}: "
                    f"{skipped[-1].why}); repair the data"
                )
        return Loaded(self.examples.collate(kept, used, seed, step), tuple(skipped))


class _Chunks(Dataset):
    """Ids → their batch, without its bad samples."""

    def __init__(self, examples: Examples, seed: int):
        self.examples, self.seed = examples, seed

    def __getitem__(self, ids: range) -> tuple[Batch | None, tuple[Skipped, ...]] | DataError:
        try:
            return _chunk(self.examples, ids, self.seed)
        except DataError as error:
            return error


def _chunk(examples: Examples, ids: Sequence[int], seed: int) -> tuple[Batch | None, tuple[Skipped, ...]]:
    """The readable ones of `ids` as a batch (None where there are none), and the others."""
    kept, used, skipped = [], [], []
    for index in ids:
        try:
            kept.append(examples.load(index, seed, 0))
            used.append(index)
        except BadSample as bad:
            skipped.append(Skipped(index, bad.where, bad.why))
    return examples.collate(kept, used, seed, 0) if kept else None, tuple(skipped)
