"""The pipeline of every job: examples to batches in worker processes, the same batches however many workers or ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch.utils.data import Dataset

from diptych.data.examples import Examples
from diptych.data.order import Order
from diptych.data.source import BadSample, DataError
from diptych.data.tally import Loaded, Skipped
from diptych.data.workers import run
from diptych.inputs import Batch
from diptych.keyed import permutation, words

TRIES = 16  # replacements drawn for a bad sample before giving up


def loader(
    examples: Examples,
    *,
    batch: int,
    seed: int,
    start: int,
    steps: int,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    workers: int = 2,
) -> Iterator[list[Loaded]]:
    """For each optimizer step in ``start … steps − 1``, the micro-batches of this rank (`accumulate` of them).

    `batch` is the global batch: a rank takes a contiguous part of it. A bad sample is replaced by another, keyed by its
    id. Raises DataError.
    """
    if batch % (world * accumulate):
        raise DataError(
            f"a batch of {batch} does not divide into {world} ranks x {accumulate} micro-batches; change one"
        )
    lengths = [examples.length(i) for i in range(len(examples))]
    dataset = _Steps(examples, Order(lengths, seed, batch), rank, world, accumulate)
    return run(dataset, range(start, steps), workers)


def sweep(
    examples: Examples, batch: int, *, seed: int = 0, rank: int = 0, world: int = 1, workers: int = 2
) -> Iterator[Loaded]:
    """Every example once, in order, for evaluation; rank r takes every `world`-th batch. Bad samples are left out.

    A last example by itself goes with the batch before: what compares samples needs another. A batch with nothing readable in
    it is not given; what it skipped is reported with the next one, or the last.
    """
    held: Loaded | None = None
    waiting: tuple[Skipped, ...] = ()
    starts = range(0, len(examples) - (len(examples) > batch > 1), batch)
    parts = [range(at, len(examples) if at == starts[-1] else at + batch) for at in starts]
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

    def __init__(self, examples: Examples, order: Order, rank: int, world: int, accumulate: int):
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
            others = words(seed, step, [first], "replacement", TRIES)[0] % len(self.examples)
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
