"""The parts that the work is dealt out in: each becomes one shard, whoever does it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from diptych.data.loader import Skipped
from diptych.data.sources.base import Captioned, DataError
from diptych.data.sources.captions import open_captions
from diptych.data.sources.splits import asked_split
from diptych.data.webdataset.shards import CaptionedShards, tars_of
from diptych.data.webdataset.writer import safe_key

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """All the processes at work, seen from one of them; what torchrun sets in their environment."""

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Workers:
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def main(self) -> bool:
        """Whether this process tells how it goes, and puts the parts together."""
        return self.rank == 0

    def share(self, work: Sequence[T]) -> Sequence[T]:
        return work[self.rank :: self.world]


@dataclass(frozen=True)
class Unit:
    """Images `first` to `last` of a source, and the name of the shard that they become. `tar`: of all that shard."""

    name: str
    data: str
    split: str
    first: int = 0
    last: int | None = None
    tar: bool = False

    def open(self, least: int | None = None) -> Opened:
        """Raises DataError."""
        bad: list[Skipped] = []
        if self.tar:
            source: Captioned = CaptionedShards(self.data, self.split, least=least, bad=bad)
        else:
            source = _opened(self.data, self.split, least)
        return Opened(self, source, range(len(source))[self.first : self.last], bad)


@dataclass(frozen=True)
class Opened:
    """A unit's images, by index into their source, and the samples that lack a part."""

    unit: Unit
    source: Captioned
    images: range
    bad: list[Skipped]

    def key(self, index: int) -> str:
        """What the sample is called: its key in a tar, elsewhere its number."""
        return safe_key(self.source.members[index].key) if isinstance(self.source, CaptionedShards) else f"{index:08d}"


def units(data: str, split: str, images: int) -> list[Unit]:
    """A unit for each tar, under its own name; of other data one for so many `images`. Raises DataError."""
    split = asked_split(split, data) if split else ""
    if data.endswith(".tar"):
        paths = tars_of(data, split)
        name, times = Counter(path.stem for path in paths).most_common(1)[0] if paths else ("", 0)
        if times != 1:
            told = f"{times} of the shards are called {name}.tar" if paths else f"no shard is of split {split!r}"
            raise DataError(f"{data}: {told}; name others")
        return [Unit(path.stem, str(path), split, tar=True) for path in paths]
    if images < 1:
        raise DataError(f"a shard of {images} images cannot be written; give --shard_size 1 or more")
    split = split or "train"
    source = _opened(data, split, None)
    starts = range(0, len(source), images)
    return [Unit(f"{split}-{i:05d}", data, split, at, at + images) for i, at in enumerate(starts)]


@lru_cache(4)
def _opened(data: str, split: str, least: int | None) -> Captioned:
    return open_captions(data, split, least=least)


def outside(found: Sequence[Unit], out: Path) -> None:
    """Raises DataError where what is written would take the place of what is read."""
    for unit in found:
        if unit.tar and Path(unit.data).resolve() == (out / f"{unit.name}.tar").resolve():
            raise DataError(f"{unit.data} would be written over; give another --out")
