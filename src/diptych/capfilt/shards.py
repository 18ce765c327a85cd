"""Input shards: the units of work that processes share. Each becomes one output shard, whoever processes it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from diptych.config.data import USUAL_LAYOUT, DataLayout
from diptych.data.loader import Skipped
from diptych.data.sources.base import Captioned, DataError
from diptych.data.sources.captions import open_captions
from diptych.data.sources.division import say_division
from diptych.data.sources.splits import requested_split
from diptych.data.webdataset.indexed_shards import CaptionedShards, tars_of
from diptych.data.webdataset.writer import safe_key

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """This process's rank and the number of processes, as torchrun sets them in the environment."""

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Workers:
        """Read from the environment; without torchrun one process."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def main(self) -> bool:
        """Whether this process prints progress and writes the summary."""
        return self.rank == 0

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """This process's part of the work."""
        return work[self.rank :: self.world]


@dataclass(frozen=True)
class InputShard:
    """Images `first` to `last` of a dataset, and their output shard's name. `tar`: all images of the tar `data`."""

    name: str
    data: str
    split: str
    first: int = 0
    last: int | None = None
    tar: bool = False
    layout: DataLayout = USUAL_LAYOUT

    def open(self, min_side: int | None = None) -> OpenShard:
        """Opens the images, decoded to a shorter side of at least `min_side` pixels. Raises DataError."""
        bad: list[Skipped] = []
        if self.tar:
            source: Captioned = CaptionedShards(
                self.data, self.split, columns=self.layout.columns, min_side=min_side, bad=bad
            )
        else:
            source = _opened(self.data, self.split, self.layout, min_side)
        return OpenShard(self, source, range(len(source))[self.first : self.last], bad)


@dataclass(frozen=True)
class OpenShard:
    """The images of a shard, as indices into their source, and the samples that are incomplete."""

    shard: InputShard
    source: Captioned
    images: range
    bad: list[Skipped]

    def key(self, index: int) -> str:
        """The sample's key in the tar; for other data, its index."""
        return safe_key(self.source.members[index].key) if isinstance(self.source, CaptionedShards) else f"{index:08d}"


def input_shards(data: str, split: str, images: int, layout: DataLayout = USUAL_LAYOUT) -> list[InputShard]:
    """A shard for each tar, with the tar's name; for other data, one for every `images` images. Raises DataError."""
    split = requested_split(split, data) if split else ""
    if data.endswith(".tar"):
        paths = tars_of(data, split)
        name, times = Counter(path.stem for path in paths).most_common(1)[0] if paths else ("", 0)
        if times != 1:
            problem = f"{times} of the shards are called {name}.tar" if paths else f"no shard is of split {split!r}"
            raise DataError(f"{data}: {problem}; give other shards")
        return [InputShard(path.stem, str(path), split, tar=True, layout=layout) for path in paths]
    if images < 1:
        raise DataError(f"a shard of {images} images cannot be written; give --shard_size 1 or more")
    split = split or "train"
    source = _opened(data, split, layout, None)
    say_division(source)
    starts = range(0, len(source), images)
    return [InputShard(f"{split}-{i:05d}", data, split, at, at + images, layout=layout) for i, at in enumerate(starts)]


@lru_cache(4)
def _opened(data: str, split: str, layout: DataLayout, min_side: int | None) -> Captioned:
    return open_captions(data, split, layout, min_side=min_side)


def check_output(shards: Sequence[InputShard], out: Path) -> None:
    """Raises DataError if an output tar would overwrite an input tar."""
    for shard in shards:
        if shard.tar and Path(shard.data).resolve() == (out / f"{shard.name}.tar").resolve():
            raise DataError(f"{shard.data} would be overwritten; give another --out")
