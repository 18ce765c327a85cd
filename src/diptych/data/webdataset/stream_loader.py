"""Data loader for streams of tars: the main process reads, workers decode; batches do not depend on their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch.utils.data import Dataset

from diptych.data.examples import Examples
from diptych.data.loader import TRIES, Loaded, Skipped, run
from diptych.data.sources.base import BadSample, Captioned, DataError
from diptych.data.webdataset.streamed_shards import Lane, Part, Stream, TarSample, cursor_of
from diptych.utils.rng import permutation, random_words

Make = Callable[[Captioned], Examples]  # from captioned images to training examples


def stream_loader(
    stream: Stream,
    make: Make,
    *,
    batch_size: int,
    seed: int,
    start: int,
    steps: int,
    rank: int = 0,
    world: int = 1,
    grad_accum: int = 1,
    workers: int = 2,
    cursor: Mapping[str, Sequence[int]] | None = None,
    min_side: int | None = None,
) -> Iterator[list[Loaded]]:
    """Like `loader.training_loader`, for a stream.

    A bad sample is replaced by another of its lane and step, drawn by its position, and so are images of mismatched ITM
    pairs; the run stops only if none of them can be used.

    Args (others as for `training_loader`):
        make: makes training examples from captioned images.
        cursor: position of the stream at step `start`, from the batch `Loaded` before it; empty: the beginning. It may
            come from a run with another number of ranks.
        min_side: see captions.CaptionedFiles.
    """
    lanes = stream.settings.lanes
    if batch_size % lanes or lanes % (world * grad_accum):
        raise DataError(
            f"batch size {batch_size} must be a multiple of {lanes} lanes, and those of {world} ranks x {grad_accum} "
            "micro-batches; change one"
        )
    if batch_size // lanes < 2:
        raise DataError(
            f"batch size {batch_size} has fewer than two samples for each of {lanes} lanes; lower streaming.lanes"
        )
    if start and not cursor:
        raise DataError(
            f"the checkpoint has no position of step {start} in {stream.name}; start a new run with another --out"
        )
    mine = stream.lanes(range(rank * lanes // world, (rank + 1) * lanes // world), seed, cursor or {})
    made = _Steps(make, stream.name, stream.split, seed, grad_accum, min_side)
    return run(made, _Reading(mine, batch_size // lanes, range(start, steps)), workers)


class _Read(NamedTuple):
    """Samples read for one step, per lane, and the positions of all lanes after them."""

    step: int
    parts: list[tuple[int, list[TarSample]]]
    cursor: dict[str, list[int]]


class _Reading:
    """Samples of the lanes, step by step. It is iterated in the main process, ahead of training."""

    def __init__(self, lanes: list[Lane], each: int, steps: range):
        self.lanes, self.each, self.steps = lanes, each, steps

    def __iter__(self) -> Iterator[_Read]:
        for step in self.steps:
            yield _Read(step, [(lane.number, lane.take(self.each)) for lane in self.lanes], cursor_of(self.lanes))


class _Steps(Dataset):
    """Micro-batches from the samples of a step."""

    def __init__(self, make: Make, name: str, split: str, seed: int, grad_accum: int, min_side: int | None):
        self.make, self.name, self.split = make, name, split
        self.seed, self.grad_accum, self.min_side = seed, grad_accum, min_side

    def __getitem__(self, read: _Read) -> list[Loaded] | DataError:
        each = len(read.parts) // self.grad_accum
        try:
            return [self._micro(read, i, i + each) for i in range(0, len(read.parts), each)]
        except DataError as error:  # returned as a value: torch would wrap it in the worker's traceback
            return error

    def _micro(self, read: _Read, first: int, end: int) -> Loaded:
        loaded, ids, skipped = [], [], []
        for lane, samples in read.parts[first:end]:
            # a lane's dsamples are keyed by its own seed and the position in its part
            seed = int(random_words(self.seed, read.step, [lane], "lane", 1)[0, 0] >> 1)
            examples = self.make(Part(samples, self.name, self.split, self.seed, read.step, self.min_side))
            for place in range(len(samples)):
                used, made = _one(examples, samples, place, seed, read.step, skipped)
                loaded.append(made)
                ids.append(samples[used].id)
        examples = self.make(Part([], self.name, self.split, self.seed, read.step))
        batch = examples.collate(loaded, ids, self.seed, read.step)
        return Loaded(batch, tuple(skipped), read.cursor)


def _one(
    examples: Examples, samples: Sequence[TarSample], place: int, seed: int, step: int, skipped: list[Skipped]
) -> tuple[int, object]:
    """The sample at `place` or its replacement, as (index, example); bad samples are appended to `skipped`.

    If a sample yields several examples (an image and its flip), one of them is drawn. Raises DataError.
    """
    several = max(1, len(examples) // len(samples))
    others = permutation(
        seed, step, len(samples), f"replacement {place}"
    ).tolist()  # itself too: with other dsamples it may do
    for tried, index in enumerate([place, *others * TRIES][: max(TRIES, len(samples)) + 1]):
        if samples[index].bad:
            skipped.append(Skipped(samples[index].id, samples[index].where, samples[index].bad))
            continue
        which = int(random_words(seed, step, [index], "which", 1)[0, 0] % several)
        try:
            return index, examples.load(index * several + which, seed + tried, step)  # other dsamples at each
        except BadSample as bad:
            skipped.append(Skipped(samples[index].id, bad.where, bad.why))
    raise DataError(
        f"none of {len(samples)} samples of one lane and step could be used (last: {skipped[-1].where}: "
        f"{skipped[-1].why}); repair the data"
    )
