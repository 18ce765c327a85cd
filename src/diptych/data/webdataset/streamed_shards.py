"""Sequential reading of tars without an index, in an order that is the same for any number of ranks.

The stream is divided into a fixed number of lanes. In each epoch the tars are permuted, and lane l reads the l-th of
every `lanes` of them: it fills a buffer, shuffles it, yields its samples, and fills it again. A global batch takes
equally many samples from each lane. Ranks share the lanes; the order depends on nothing else. The position of a lane is
four numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from PIL import Image as Pillow

from diptych.config.data import Streaming
from diptych.data.images.decode import decode
from diptych.data.sources.base import BadSample, DataError
from diptych.data.sources.splits import requested_split
from diptych.data.webdataset.indexed_shards import CaptionedShards, tars_of
from diptych.data.webdataset.tar_samples import TarSample, tar_samples
from diptych.utils.rng import permutation, random_words

MAX_HELD = 4 << 30  # bytes in the buffers of all lanes; with large samples, buffers contain fewer than configured


@dataclass(frozen=True)
class Position:
    """Position of a lane: the epoch, tar (index in the lane's order) and byte where its current buffer begins, and the
    number of samples already taken from that buffer (`consumed`).
    """

    epoch: int = 0
    tar: int = 0
    byte: int = 0
    consumed: int = 0


class Lane:
    """One of the readers of a stream.

    Args:
        shards: all tars of the stream.
        number: index of the lane.
        lanes: number of lanes.
        buffer: size of the shuffle buffer in samples; fewer if they would exceed the lane's share of MAX_HELD.
        seed: keys the order.
        at: position to resume from.

    Raises:
        DataError: `at` is not a position in these tars.
    """

    def __init__(
        self, shards: Sequence[Path], number: int, lanes: int, buffer: int, seed: int, at: Position = Position()
    ):
        self.shards, self.number, self.lanes, self.buffer, self.seed = shards, number, lanes, buffer, seed
        self.start = self._next = Position(at.epoch, at.tar, at.byte)
        self._buffered: list[TarSample] = []
        self._taken = 0
        if at.consumed:
            self._fill()
            self._taken = at.consumed
            if at.consumed > len(self._buffered):
                raise DataError(
                    f"lane {number} had read {at.consumed} samples of a buffer that now has {len(self._buffered)}: the "
                    "tars have changed; restore them, or start a new run with another --out"
                )

    @property
    def place(self) -> Position:
        """Current position, from which another Lane can resume."""
        return Position(self.start.epoch, self.start.tar, self.start.byte, self._taken)

    def take(self, n: int) -> list[TarSample]:
        """The next `n` samples. Raises DataError."""
        taken: list[TarSample] = []
        while len(taken) < n:
            if self._taken == len(self._buffered):
                self._fill()
            more = self._buffered[self._taken : self._taken + n - len(taken)]
            taken += more
            self._taken += len(more)
        return taken

    def _fill(self) -> None:
        """Fills and shuffles the next buffer, which ends at the latest with the epoch."""
        self.start, self._taken, self._buffered = self._next, 0, []  # free the old buffer before filling the next
        samples, room = list[TarSample](), MAX_HELD // self.lanes
        epoch, tar, byte = self.start.epoch, self.start.tar, self.start.byte
        order = permutation(self.seed, epoch, len(self.shards), "shards")[self.number :: self.lanes]
        while len(samples) < self.buffer and room > 0 and tar < len(order):
            for sample, end in tar_samples(self.shards[order[tar]], byte):
                samples.append(sample)
                room -= len(sample.picture) + sum(map(len, sample.captions))
                if len(samples) == self.buffer or room <= 0:
                    byte = end
                    break
            else:
                tar, byte = tar + 1, 0
        self._next = Position(epoch, tar, byte) if tar < len(order) else Position(epoch + 1)
        if not samples and self.start == Position(epoch):
            raise DataError(f"{self.shards[order[0]]}: no samples in this lane's tars; leave empty tars out")
        order = permutation(self.seed, epoch, len(samples), f"buffer {self.number} {self.start.tar} {self.start.byte}")
        self._buffered = [samples[i] for i in order]


class Stream:
    """Stream of the tars matched by `spec` (see config.data.Streaming), without tars named for other splits.

    Raises DataError.
    """

    def __init__(self, spec: str, split: str, settings: Streaming):
        split = requested_split(split, spec)
        self.name, self.split, self.settings = Path(spec).parent.resolve().name, split, settings
        self.shards = tars_of(spec, split)
        if not self.shards:
            raise DataError(f"{spec}: no tar of split {split!r}; name another split or other tars")
        if len(self.shards) < settings.lanes:
            raise DataError(f"{len(self.shards)} tars are too few for {settings.lanes} lanes; lower streaming.lanes")

    def head(self, min_side: int | None = None) -> CaptionedShards:
        """Samples of the first tar that is not empty, as a random-access source. Raises DataError if all are empty."""
        for shard in self.shards:
            source = CaptionedShards(str(shard), self.split, min_side=min_side, bad=[])
            if len(source):
                return source
        raise DataError(f"{self.name}: no samples in any of {len(self.shards)} tars; write them again")

    def lanes(self, numbers: Sequence[int], seed: int, cursor: Mapping[str, Sequence[int]]) -> list[Lane]:
        """Some of the lanes, resumed from their positions in `cursor`, or at the beginning if it has none."""
        each = max(1, self.settings.buffer // self.settings.lanes)
        return [
            Lane(self.shards, n, self.settings.lanes, each, seed, Position(*cursor.get(str(n), ()))) for n in numbers
        ]


def cursor_of(lanes: Sequence[Lane]) -> dict[str, list[int]]:
    """Positions of lanes as plain values: {number: [epoch, tar, byte, given]}."""
    return {str(lane.number): list(astuple(lane.place)) for lane in lanes}


class Part:
    """Samples of one lane and step as captioned images (`base.Captioned`), each with one random caption."""

    def __init__(
        self, samples: Sequence[TarSample], name: str, split: str, seed: int, step: int, min_side: int | None = None
    ):
        self.samples, self.name, self.split, self.min_side = samples, name, split, min_side
        drawn = random_words(seed, step, [sample.id for sample in samples], "caption", 1)[:, 0].tolist()
        self.chosen = [
            sample.captions[draw % len(sample.captions)] for sample, draw in zip(samples, drawn, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def image(self, index: int) -> Pillow.Image:
        return decode(self.file(index), self.where(index), min_side=self.min_side)

    def file(self, index: int) -> bytes:
        """Bytes of the image file. Raises BadSample."""
        if why := self.samples[index].bad:
            raise BadSample(self.where(index), why)
        return self.samples[index].picture

    def stem(self, index: int) -> str:
        """The sample's key without its folder."""
        return self.where(index).rpartition(", ")[2].rpartition("/")[2]

    def captions(self, index: int) -> tuple[str, ...]:
        return (self.chosen[index],)

    def where(self, index: int) -> str:
        return self.samples[index].where
