"""Tars read one after the other, without an index: a stream whose order is the same on any number of ranks.

The stream is dealt to a fixed number of lanes. In each epoch tars are permuted, and lane l reads the l-th of every
`lanes` of them; it fills a buffer, shuffles it, gives it out, and fills it again. A global batch takes as many samples
of each lane. Ranks share the lanes, and nothing else of the order knows of them. Where a lane stands is four numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from PIL import Image as Pillow

from diptych.config.data import Streaming
from diptych.data.images.decode import decode
from diptych.data.sources.base import BadSample, DataError
from diptych.data.sources.splits import asked_split
from diptych.data.webdataset.shards import CaptionedShards, tars_of
from diptych.data.webdataset.tar import TarSample, tar_samples
from diptych.utils.rng import permutation, random_words

MOST_HELD = 4 << 30  # bytes in the buffers of all lanes: where samples are large, fewer are held than were asked for


@dataclass(frozen=True)
class Position:
    """Where a lane stands: the epoch, tar (by its place in the lane's order) and byte at which its buffer was begun to be
    filled, and how many samples of that buffer were given out.
    """

    epoch: int = 0
    tar: int = 0
    byte: int = 0
    given: int = 0


class Lane:
    """One of the readers that a stream is dealt to. `buffer`: samples it holds to shuffle them, fewer where those
    fill its share of MOST_HELD. Raises DataError where the tars cannot be those in which a lane stood `at` that place.
    """

    def __init__(
        self, shards: Sequence[Path], number: int, lanes: int, buffer: int, seed: int, at: Position = Position()
    ):
        self.shards, self.number, self.lanes, self.buffer, self.seed = shards, number, lanes, buffer, seed
        self.begun = self._next = Position(at.epoch, at.tar, at.byte)
        self._held: list[TarSample] = []
        self._given = 0
        if at.given:
            self._fill()
            self._given = at.given
            if at.given > len(self._held):
                raise DataError(
                    f"lane {number} had given out {at.given} samples where its tars now have {len(self._held)}; "
                    "put the same tars back, or begin again with another --out"
                )

    @property
    def place(self) -> Position:
        """Where it stands, which another Lane may go on from."""
        return Position(self.begun.epoch, self.begun.tar, self.begun.byte, self._given)

    def take(self, n: int) -> list[TarSample]:
        """The next `n` samples. Raises DataError."""
        taken: list[TarSample] = []
        while len(taken) < n:
            if self._given == len(self._held):
                self._fill()
            more = self._held[self._given : self._given + n - len(taken)]
            taken += more
            self._given += len(more)
        return taken

    def _fill(self) -> None:
        """The next buffer, shuffled. It ends with the epoch."""
        self.begun, self._given, self._held = self._next, 0, []  # none is held twice while others are read
        held, room = list[TarSample](), MOST_HELD // self.lanes
        epoch, tar, byte = self.begun.epoch, self.begun.tar, self.begun.byte
        order = permutation(self.seed, epoch, len(self.shards), "shards")[self.number :: self.lanes]
        while len(held) < self.buffer and room > 0 and tar < len(order):
            for raw, behind in tar_samples(self.shards[order[tar]], byte):
                held.append(raw)
                room -= len(raw.picture) + sum(map(len, raw.captions))
                if len(held) == self.buffer or room <= 0:
                    byte = behind
                    break
            else:
                tar, byte = tar + 1, 0
        self._next = Position(epoch, tar, byte) if tar < len(order) else Position(epoch + 1)
        if not held and self.begun == Position(epoch):
            raise DataError(f"{self.shards[order[0]]}: no sample in this lane's tars; leave empty tars out")
        mixed = permutation(self.seed, epoch, len(held), f"buffer {self.number} {self.begun.tar} {self.begun.byte}")
        self._held = [held[i] for i in mixed]


class Stream:
    """The tars that a brace glob names, as a stream; see `Streaming`. Tars whose names speak of another split are left out.

    Raises DataError.
    """

    def __init__(self, spec: str, split: str, settings: Streaming):
        split = asked_split(split, spec)
        self.name, self.split, self.settings = Path(spec).parent.resolve().name, split, settings
        self.shards = tars_of(spec, split)
        if not self.shards:
            raise DataError(f"{spec}: no tar of split {split!r}; name another split or other tars")
        if len(self.shards) < settings.lanes:
            raise DataError(f"{len(self.shards)} tars cannot be dealt to {settings.lanes} lanes; lower streaming.lanes")

    def head(self, least: int | None = None) -> CaptionedShards:
        """The samples of the first tar that has any, in any order. Raises DataError where none has."""
        for shard in self.shards:
            found = CaptionedShards(str(shard), self.split, least=least, bad=[])
            if len(found):
                return found
        raise DataError(f"{self.name}: no sample in any of {len(self.shards)} tars; write them again")

    def lanes(self, numbers: Sequence[int], seed: int, cursor: Mapping[str, Sequence[int]]) -> list[Lane]:
        """Some of the lanes, going on where `cursor` says that they stand; from the beginning where it says nothing."""
        each = max(1, self.settings.buffer // self.settings.lanes)
        return [
            Lane(self.shards, n, self.settings.lanes, each, seed, Position(*cursor.get(str(n), ()))) for n in numbers
        ]


def cursor_of(lanes: Sequence[Lane]) -> dict[str, list[int]]:
    """Where lanes stand, as plain values: {number: epoch, tar, byte, given}."""
    return {str(lane.number): list(astuple(lane.place)) for lane in lanes}


class Part:
    """Samples of one lane and step as captioned images (`source.Captioned`), each with one of its captions, which is keyed."""

    def __init__(
        self, raws: Sequence[TarSample], name: str, split: str, seed: int, step: int, least: int | None = None
    ):
        self.raws, self.name, self.split, self.least = raws, name, split, least
        drawn = random_words(seed, step, [raw.id for raw in raws], "caption", 1)[:, 0].tolist()
        self.said = [raw.captions[draw % len(raw.captions)] for raw, draw in zip(raws, drawn, strict=True)]

    def __len__(self) -> int:
        return len(self.raws)

    def image(self, index: int) -> Pillow.Image:
        return decode(self.file(index), self.where(index), least=self.least)

    def file(self, index: int) -> bytes:
        """The picture's file as it lies. Raises BadSample."""
        if why := self.raws[index].bad:
            raise BadSample(self.where(index), why)
        return self.raws[index].picture

    def stem(self, index: int) -> str:
        """The sample's key, without its folder: how others name what they say of its picture."""
        return self.where(index).rpartition(", ")[2].rpartition("/")[2]

    def captions(self, index: int) -> tuple[str, ...]:
        return (self.said[index],)

    def where(self, index: int) -> str:
        return self.raws[index].where
