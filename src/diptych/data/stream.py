"""Tars read one after the other, without an index: a stream whose order is the same on any number of ranks.

The stream is dealt to a fixed number of lanes. In each epoch tars are permuted, and lane l reads the l-th of every
`lanes` of them; it fills a buffer, shuffles it, gives it out, and fills it again. A global batch takes as many samples
of each lane. Ranks share the lanes, and nothing else of the order knows of them. Where a lane stands is four numbers.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from PIL import Image as Pillow

from diptych.data.decode import MAX_PIXELS, decode
from diptych.data.formats import named_split
from diptych.data.settings import Streaming
from diptych.data.shards import TEXTS, captions_in, name_of, picture_and_text, read_text, shards
from diptych.data.source import BadSample, DataError
from diptych.keyed import permutation, words


@dataclass(frozen=True)
class Raw:
    """A sample as it lies in its tar, not decoded. `picture`: its file's bytes; none where they are too many."""

    where: str
    id: int  # of its tar's name and its key
    picture: bytes
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where a lane stands: the epoch, tar (by its place in the lane's order) and byte at which its buffer was begun to be
    filled, and how many samples of that buffer were given out.
    """

    epoch: int = 0
    tar: int = 0
    byte: int = 0
    given: int = 0


def raws(shard: Path, byte: int = 0) -> Iterator[tuple[Raw, int]]:
    """The samples of a tar from `byte` on, in their order, each with the byte behind it. A sample's members are neighbours.

    Raises DataError.
    """
    try:
        with shard.open("rb") as file:
            file.seek(byte)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                key, parts = "", dict[str, str | bytes]()
                while (info := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # they would all be kept
                    if (named := name_of(info)) is None:
                        continue
                    if parts and named[0] != key:
                        yield _raw(shard, key, parts), info.offset
                        parts = {}
                    key, suffix = named
                    parts[suffix] = _content(tar, info, suffix, f"{shard}, {key}")
                if parts:
                    yield _raw(shard, key, parts), tar.offset
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise DataError(f"{shard}: not a whole uncompressed tar ({error}); write the shard again") from None


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo, suffix: str, where: str) -> str | bytes:
    if suffix in TEXTS:
        return read_text(tar, info, where)
    file = tar.extractfile(info) if info.size <= 4 * MAX_PIXELS else None
    return file.read() if file else b""


def _raw(shard: Path, key: str, parts: Mapping[str, str | bytes]) -> Raw:
    where = f"{shard}, {key}"
    picture, said, suffix = picture_and_text(parts, where)
    digest = hashlib.blake2b(f"{shard.name}/{key}".encode(errors="surrogateescape"), digest_size=8).digest()
    captions = captions_in(str(said), suffix, "caption", where)
    return Raw(where, int.from_bytes(digest) >> 1, bytes(picture), captions)  # type: ignore[arg-type]


class Lane:
    """One of the readers that a stream is dealt to. `buffer`: samples it holds to shuffle them."""

    def __init__(self, shards: Sequence[Path], number: int, lanes: int, buffer: int, seed: int, at: Place = Place()):
        self.shards, self.number, self.lanes, self.buffer, self.seed = shards, number, lanes, buffer, seed
        self.begun = self._next = Place(at.epoch, at.tar, at.byte)
        self._held: list[Raw] = []
        self._given = 0
        if at.given:
            self._fill()
            self._given = at.given

    @property
    def place(self) -> Place:
        """Where it stands, which another Lane may go on from."""
        return Place(self.begun.epoch, self.begun.tar, self.begun.byte, self._given)

    def take(self, n: int) -> list[Raw]:
        """The next `n` samples. Raises DataError."""
        taken: list[Raw] = []
        while len(taken) < n:
            if self._given == len(self._held):
                self._fill()
            more = self._held[self._given : self._given + n - len(taken)]
            taken += more
            self._given += len(more)
        return taken

    def _fill(self) -> None:
        """The next buffer, shuffled. It ends with the epoch."""
        self.begun, self._given, held = self._next, 0, []
        epoch, tar, byte = self.begun.epoch, self.begun.tar, self.begun.byte
        order = permutation(self.seed, epoch, len(self.shards), "shards")[self.number :: self.lanes]
        while len(held) < self.buffer and tar < len(order):
            for raw, behind in raws(self.shards[order[tar]], byte):
                held.append(raw)
                if len(held) == self.buffer:
                    byte = behind
                    break
            else:
                tar, byte = tar + 1, 0
        self._next = Place(epoch, tar, byte) if tar < len(order) else Place(epoch + 1)
        if not held and self.begun == Place(epoch):
            raise DataError(f"{self.shards[order[0]]}: no sample in this lane's tars; leave empty tars out")
        mixed = permutation(self.seed, epoch, len(held), f"buffer {self.number} {self.begun.tar} {self.begun.byte}")
        self._held = [held[i] for i in mixed]


class Stream:
    """The tars that a brace glob names, as a stream; see `Streaming`. Tars whose names speak of another split are left out.

    Raises DataError.
    """

    def __init__(self, spec: str, split: str, settings: Streaming):
        self.name, self.split, self.settings = Path(spec).parent.resolve().name, split, settings
        self.shards = [s for s in shards(spec) if named_split(s) in (split, None)]
        if not self.shards:
            raise DataError(f"{spec}: no tar of split {split!r}; name another split or other tars")
        if len(self.shards) < settings.lanes:
            raise DataError(f"{len(self.shards)} tars cannot be dealt to {settings.lanes} lanes; lower streaming.lanes")

    def lanes(self, numbers: Sequence[int], seed: int, cursor: Mapping[str, Sequence[int]]) -> list[Lane]:
        """Some of the lanes, going on where `cursor` says that they stand; from the beginning where it says nothing."""
        each = max(1, self.settings.buffer // self.settings.lanes)
        return [Lane(self.shards, n, self.settings.lanes, each, seed, Place(*cursor.get(str(n), ()))) for n in numbers]


def cursor_of(lanes: Sequence[Lane]) -> dict[str, list[int]]:
    """Where lanes stand, as plain values: {number: epoch, tar, byte, given}."""
    return {str(lane.number): list(astuple(lane.place)) for lane in lanes}


class Part:
    """Samples of one lane and step as captioned images (`source.Captioned`), each with one of its captions, which is keyed."""

    def __init__(self, raws: Sequence[Raw], name: str, split: str, seed: int, step: int, least: int | None = None):
        self.raws, self.name, self.split, self.least = raws, name, split, least
        drawn = words(seed, step, [raw.id for raw in raws], "caption", 1)[:, 0].tolist()
        self.said = [raw.captions[draw % len(raw.captions)] for raw, draw in zip(raws, drawn, strict=True)]

    def __len__(self) -> int:
        return len(self.raws)

    def image(self, index: int) -> Pillow.Image:
        return decode(self.file(index), self.where(index), least=self.least)

    def file(self, index: int) -> bytes:
        """The picture's file as it lies. Raises BadSample."""
        data = self.raws[index].picture
        if not data:
            raise BadSample(self.where(index), f"no bytes, or more than the limit of {4 * MAX_PIXELS}")
        return data

    def stem(self, index: int) -> str:
        """The sample's key, without its folder: how others name what they say of its picture."""
        return self.where(index).rpartition(", ")[2].rpartition("/")[2]

    def captions(self, index: int) -> tuple[str, ...]:
        return (self.said[index],)

    def where(self, index: int) -> str:
        return self.raws[index].where
