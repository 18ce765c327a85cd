"""The pipeline of a stream: one process reads its tars, workers decode; the same batches however many workers or ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch.utils.data import Dataset

from diptych.data.examples import Examples
from diptych.data.loader import TRIES, Loaded, Skipped, run
from diptych.data.sources.base import BadSample, Captioned, DataError
from diptych.data.webdataset.stream import Lane, Part, Stream, TarSample, cursor_of
from diptych.utils.rng import permutation, random_words

Make = Callable[[Captioned], Examples]  # how captioned images become what a run learns from


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
    least: int | None = None,
) -> Iterator[list[Loaded]]:
    """As `loader.loader`, of a stream. `cursor`: where step `start` begins, as what was `Loaded` before it says; empty: at
    the stream's beginning. It may have been left by another number of ranks. `least`: see files.CaptionedFiles.

    A bad sample is replaced by another of its lane and step, keyed by its place, and the run gives up only where none of
    them will do; so are images that matching replaces.
    """
    lanes = stream.settings.lanes
    if batch_size % lanes or lanes % (world * grad_accum):
        raise DataError(
            f"a batch of {batch_size} does not divide into {lanes} lanes, and those into {world} ranks x {grad_accum} "
            "micro-batches; change one"
        )
    if batch_size // lanes < 2:
        raise DataError(
            f"a batch of {batch_size} has fewer than two samples of each of {lanes} lanes; lower streaming.lanes"
        )
    if start and not cursor:
        raise DataError(f"nothing says where step {start} begins in {stream.name}; begin again with another --out")
    mine = stream.lanes(range(rank * lanes // world, (rank + 1) * lanes // world), seed, cursor or {})
    made = _Steps(make, stream.name, stream.split, seed, grad_accum, least)
    return run(made, _Reading(mine, batch_size // lanes, range(start, steps)), workers)


class _Read(NamedTuple):
    """What was read for one step: of each lane its samples, and where all lanes stand behind them."""

    step: int
    parts: list[tuple[int, list[TarSample]]]
    cursor: dict[str, list[int]]


class _Reading:
    """The lanes' samples, step after step. It runs in the process that trains, ahead of it."""

    def __init__(self, lanes: list[Lane], each: int, steps: range):
        self.lanes, self.each, self.steps = lanes, each, steps

    def __iter__(self) -> Iterator[_Read]:
        for step in self.steps:
            yield _Read(step, [(lane.number, lane.take(self.each)) for lane in self.lanes], cursor_of(self.lanes))


class _Steps(Dataset):
    """What was read → micro-batches."""

    def __init__(self, make: Make, name: str, split: str, seed: int, accumulate: int, least: int | None):
        self.make, self.name, self.split = make, name, split
        self.seed, self.accumulate, self.least = seed, accumulate, least

    def __getitem__(self, read: _Read) -> list[Loaded] | DataError:
        each = len(read.parts) // self.accumulate
        try:
            return [self._micro(read, i, i + each) for i in range(0, len(read.parts), each)]
        except DataError as error:  # given as a value: torch would wrap its message in a worker's traceback
            return error

    def _micro(self, read: _Read, first: int, end: int) -> Loaded:
        loaded, ids, skipped = [], [], []
        for lane, raws in read.parts[first:end]:
            # a lane's draws are keyed by a seed of its own, and by the place in the part
            seed = int(random_words(self.seed, read.step, [lane], "lane", 1)[0, 0] >> 1)
            examples = self.make(Part(raws, self.name, self.split, self.seed, read.step, self.least))
            for place in range(len(raws)):
                used, made = _one(examples, raws, place, seed, read.step, skipped)
                loaded.append(made)
                ids.append(raws[used].id)
        examples = self.make(Part([], self.name, self.split, self.seed, read.step))
        batch = examples.collate(loaded, ids, self.seed, read.step)
        return Loaded(batch, tuple(skipped), read.cursor)


def _one(
    examples: Examples, raws: Sequence[TarSample], place: int, seed: int, step: int, skipped: list[Skipped]
) -> tuple[int, object]:
    """The sample at `place`, or what replaces it, and its place; what is bad is entered in `skipped`. Raises DataError.

    Where a sample is several examples (a picture and its mirror image), one of them is drawn.
    """
    several = max(1, len(examples) // len(raws))
    others = permutation(
        seed, step, len(raws), f"replacement {place}"
    ).tolist()  # itself too: with other draws it may do
    for tried, index in enumerate([place, *others * TRIES][: max(TRIES, len(raws)) + 1]):
        if raws[index].bad:
            skipped.append(Skipped(raws[index].id, raws[index].where, raws[index].bad))
            continue
        which = int(random_words(seed, step, [index], "which", 1)[0, 0] % several)
        try:
            return index, examples.load(index * several + which, seed + tried, step)  # other draws at each
        except BadSample as bad:
            skipped.append(Skipped(raws[index].id, bad.where, bad.why))
    raise DataError(
        f"none of {len(raws)} samples of one lane and step could be used (last: {skipped[-1].where}: {skipped[-1].why}); repair the data"
    )
