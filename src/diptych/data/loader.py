"""Data loaders for training and evaluation, with the same batches for any number of workers or ranks.

The order of training examples is deterministic and length-aware, and can be computed for any step without replaying
earlier ones. Bad samples are skipped, counted and reported; above a limit the run stops.
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
from diptych.data.sources.base import BadSample, DataError, Skipped, WorkerDied, first_skipped
from diptych.utils.rng import permutation, random_words


@dataclass(frozen=True)
class Loaded:
    """A batch and the samples that were skipped while making it."""

    batch: Batch
    skipped: tuple[Skipped, ...] = ()
    cursor: Mapping[str, list[int]] = field(default_factory=dict)  # position of each lane of a stream after it


class SkipCounter:
    """Counts bad samples; raises DataError if their share exceeds `limit`.

    `planned`: samples of the whole run, if there are fewer than 1,000. Until 1,000 samples are counted, shares are of
    1,000 or of `planned`, so that one bad sample among the first does not stop a long run.
    """

    def __init__(self, limit: float = 0.01, planned: int = 1000):
        self.limit, self.min_samples = limit, min(planned, 1000)
        self.num_samples = self.num_skipped = 0
        self.skipped: dict[int, Skipped] = {}  # each bad sample once, over all epochs

    def add(self, samples: int, skipped: Sequence[Skipped]) -> None:
        """Counts `samples` good and the skipped samples, then checks their share. Raises DataError."""
        self.skipped |= {s.id: s for s in skipped}
        self.num_skipped += len(skipped)
        self.num_samples += samples + len(skipped)
        self.check(self.min_samples)

    def check(self, min_samples: int = 1) -> None:
        """Raises DataError, which lists the first bad samples, if their share is over the limit."""
        if self.num_skipped > self.limit * max(self.num_samples, min_samples):
            head = first_skipped((s.where, s.why) for s in self.skipped.values())
            raise DataError(
                f"{self.num_skipped} of {self.num_samples} samples could not be used, more than {self.limit:.1%} "
                f"(first: {head}); repair the data, or raise --max_skipped (a share)"
            )


class BatchSampler:
    """Examples of each global batch.

    Every epoch is a permutation keyed by (seed, epoch). Within pools of `pool` batches examples are sorted by length,
    and the batches are then shuffled, so that a batch contains texts of similar length. Examples that do not fill a
    batch are left out of the epoch. The order does not depend on the number of ranks or workers, nor on earlier calls.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, seed: int, batch_size: int, pool: int = 50):
        self.lengths, self.seed, self.batch, self.pool = np.asarray(lengths), seed, batch_size, pool
        self.per_epoch = len(self.lengths) // batch_size
        if not self.per_epoch:
            raise DataError(
                f"the batch size, {batch_size}, exceeds the {len(self.lengths)} examples; lower --batch_size"
            )
        self._epoch = lru_cache(2)(self._plan)

    def ids_of(self, k: int) -> np.ndarray:
        """Indices of the examples of global batch k = 0, 1, …"""
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
    """Examples in an order shuffled by `seed`; each keeps its id, which keys its random draws.

    In the data's order a batch would contain all captions of each image, which contrastive losses would treat as
    negatives.
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
    """``dataset[key]`` for every key, in order, computed in worker processes (0: in this one).

    Raises DataError, WorkerDied.
    """
    loader: Iterable[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=keys,
        collate_fn=_identity,
        num_workers=workers,
        worker_init_fn=_set_up_worker,
        generator=torch.Generator(),  # its own, so that the global generator is not advanced
    )
    items = _iterator(loader)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error):
                raise
            raise WorkerDied(
                "a data-loading process was killed, as the system does when memory runs out; lower --workers and run "
                "the same command again: it resumes from the last checkpoint"
            ) from None
        if isinstance(item, DataError):
            raise item
        yield item


_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POSIX = os.name == "posix"


def _iterator(loader: Iterable[Any]) -> Iterator[Any]:
    """The loader's iterator, with its workers started.

    torch installs a SIGCHLD handler that raises a worker's death wherever this process is, even inside a checkpoint. It
    is removed: the death is detected within seconds, when the next batch is fetched.
    """
    if not _POSIX or threading.current_thread() is not threading.main_thread():  # signals are handled there only
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)  # until workers have set their handlers
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)


@atexit.register  # registered after multiprocessing's handler, and so run before it
def _end_workers() -> None:
    """Kills the workers of loaders that an uncaught error left open.

    multiprocessing would send them one SIGTERM, which they ignore (see _set_up_worker), and wait for them for ever.
    """
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _identity(item: Any) -> Any:
    return item


def _set_up_worker(_: int) -> None:
    """Signal handlers and thread count of a worker.

    Workers ignore Ctrl-C, which the main process handles, and a first SIGTERM, which schedulers send to all processes:
    the main process still needs data to finish its step. A second SIGTERM ends the worker. One thread per worker,
    because the workers are the parallelism.
    """
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, handle)
    if _POSIX:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    torch.set_num_threads(1)
    Queue._on_queue_feeder_error = staticmethod(_end_after_queue_error)  # type: ignore[method-assign]


def _end_after_queue_error(error: Exception, _: Any) -> None:
    """Ends a worker that cannot send a batch to the main process, which would otherwise wait for it for ever."""
    why = " ".join(str(error).split())
    message = (
        f"diptych: a data worker could not put a batch into shared memory ({why}): give it more room "
        "(--shm-size, ulimit -f), or set --workers 0"
    )
    os.write(2, f"{message}\n".encode())
    os._exit(1)


TRIES = 16  # replacements drawn for a bad sample before the run stops


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
    """Micro-batches of this rank (`grad_accum` of them) for each optimizer step in ``start … steps - 1``.

    `batch_size` is that of the global batch, of which each rank takes a contiguous part. A bad sample is replaced by
    another, drawn by its id. Raises DataError.
    """
    if batch_size % (world * grad_accum):
        raise DataError(
            f"batch size {batch_size} must be a multiple of {world} ranks x {grad_accum} micro-batches; change one"
        )
    lengths = [examples.length(i) for i in range(len(examples))]
    dataset = _Steps(examples, BatchSampler(lengths, seed, batch_size), rank, world, grad_accum)
    return run(dataset, range(start, steps), workers)


def evaluation_loader(
    examples: Examples, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1, workers: int = 2
) -> Iterator[Loaded]:
    """Batches of every example once, in order, for evaluation; rank r takes every `world`-th batch.

    Bad samples are left out. A single last example joins the batch before it, because contrastive losses need at least
    two. A batch without any usable sample is left out; its skipped samples are reported with the next batch, or the
    last.
    """
    previous: Loaded | None = None
    waiting: tuple[Skipped, ...] = ()
    numbers = range(rank, num_batches(len(examples), batch_size), world)
    for _, batch, skipped in numbered_batches(examples, batch_size, numbers, seed=seed, workers=workers):
        waiting += skipped
        if batch is None:
            continue
        if previous is not None:
            yield previous
        previous, waiting = Loaded(batch, waiting), ()
    if previous is not None:
        yield replace(previous, skipped=previous.skipped + waiting)
    elif waiting:
        raise none_usable(waiting)


def num_batches(examples: int, batch_size: int) -> int:
    """The number of batches of an evaluation. A single last example joins the batch before it."""
    return len(_evaluation_starts(examples, batch_size))


def numbered_batches(
    examples: Examples, batch_size: int, numbers: Sequence[int], *, seed: int = 0, workers: int = 2
) -> Iterator[tuple[int, Batch | None, tuple[Skipped, ...]]]:
    """The batches of `evaluation_loader` with these numbers, each with its number and the samples that it lacks.

    None stands for a batch without any usable sample. Raises DataError.
    """
    starts = _evaluation_starts(len(examples), batch_size)
    ends = [*starts[1:], len(examples)]
    parts = [range(starts[number], ends[number]) for number in numbers]
    for number, (batch, skipped) in zip(numbers, run(_Chunks(examples, seed), parts, workers), strict=True):
        yield number, batch, skipped


def none_usable(skipped: Sequence[Skipped]) -> DataError:
    """The error of an evaluation whose samples were all skipped."""
    return DataError(f"none of {len(skipped)} examples can be used (first: {skipped[0].where}: {skipped[0].why})")


def _evaluation_starts(examples: int, batch_size: int) -> range:
    """The first index of each batch of an evaluation."""
    return range(0, examples - (examples > batch_size > 1), batch_size)


def rate(examples: Examples, *, workers: int, seed: int = 0, samples: int = 64) -> str:
    """Measured loading speed in words, for the log: of each worker, or of the main process if there are none."""
    process = f"per worker ({workers} worker{'s' * (workers > 1)})" if workers else "in the main process"
    return f"{samples_per_second(examples, seed, samples):.3g} samples/s {process}"


def samples_per_second(
    examples: Examples, seed: int = 0, samples: int = 64, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Loading speed in samples per second, measured in this process on `samples` examples."""
    ids = permutation(seed, 0, len(examples), "rate")[:samples].tolist()
    start = clock()
    for first in range(0, len(ids), 16):
        _chunk(examples, ids[first : first + 16], seed)
    return len(ids) / (clock() - start)


class _Steps(Dataset):
    """Micro-batches of a step."""

    def __init__(self, examples: Examples, order: BatchSampler, rank: int, world: int, grad_accum: int):
        self.examples, self.order = examples, order
        self.rank, self.world, self.grad_accum = rank, world, grad_accum

    def __getitem__(self, step: int) -> list[Loaded] | DataError:
        ids = self.order.ids_of(step).reshape(self.world, self.grad_accum, -1)[self.rank]
        try:
            return [self._micro(part.tolist(), step) for part in ids]
        except DataError as error:  # returned as a value: torch would wrap it in the worker's traceback
            return error

    def _micro(self, ids: list[int], step: int) -> Loaded:
        seed = self.order.seed
        loaded, used, skipped = [], [], []
        for first in ids:
            others = random_words(seed, step, [first], "replacement", TRIES)[0] % len(self.examples)
            for index in (first, *others.tolist()):
                try:
                    loaded.append(self.examples.load(index, seed, step))
                    used.append(index)
                    break
                except BadSample as bad:
                    skipped.append(Skipped(index, bad.where, bad.why))
            else:
                raise DataError(
                    f"{TRIES + 1} samples in a row could not be used (last: {skipped[-1].where}: "
                    f"{skipped[-1].why}); repair the data"
                )
        return Loaded(self.examples.collate(loaded, used, seed, step), tuple(skipped))


class _Chunks(Dataset):
    """Batch of a range of ids, without its bad samples."""

    def __init__(self, examples: Examples, seed: int):
        self.examples, self.seed = examples, seed

    def __getitem__(self, ids: range) -> tuple[Batch | None, tuple[Skipped, ...]] | DataError:
        try:
            return _chunk(self.examples, ids, self.seed)
        except DataError as error:
            return error


def _chunk(examples: Examples, ids: Sequence[int], seed: int) -> tuple[Batch | None, tuple[Skipped, ...]]:
    """Batch of the usable samples among `ids` (None if there are none), and the skipped ones."""
    loaded, used, skipped = [], [], []
    for index in ids:
        try:
            loaded.append(examples.load(index, seed, 0))
            used.append(index)
        except BadSample as bad:
            skipped.append(Skipped(index, bad.where, bad.why))
    return examples.collate(loaded, used, seed, 0) if loaded else None, tuple(skipped)
