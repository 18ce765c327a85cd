"""WebDataset tars as a random-access source: headers are scanned once, and nothing is unpacked."""

from __future__ import annotations

import glob
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as Pillow

from diptych.config.data import Columns
from diptych.data.images.decode import decode
from diptych.data.sources.base import BadSample, DataError, NoSplit, Skipped
from diptych.data.sources.copies import ByteRange, same_bytes
from diptych.data.sources.splits import counted, drawn_splits, file_split, named_split, requested_split
from diptych.data.webdataset.tar_samples import (
    DAMAGE,
    captions_in,
    headers,
    name_of,
    open_tar,
    picture_and_text,
    read_text,
    twice,
    wrong_size,
)

Parts = dict[str, tarfile.TarInfo | DataError]  # members of a sample by suffix, or the error of one


@dataclass(frozen=True)
class Member:
    """One sample of a shard: location of its image's bytes, and its captions."""

    shard: Path
    key: str
    start: int
    size: int
    captions: tuple[str, ...]

    @property
    def stored(self) -> ByteRange:
        return ByteRange(self.shard, self.start, self.size)


class CaptionedShards:
    """Captioned images in tars (see `base.Captioned`): ``key.jpg`` (or png, webp) and ``key.txt`` or ``key.json``.

    Shards named for splits belong to their split. If none is, samples are divided 90/5/5 by image, keyed by `seed` and
    the image's key (the alphabetically first of several); `division` describes it in one line.

    Args:
        spec: path of the tars; may contain braces (``{000..003}``, ``{a,b}``) and wildcards.
        split: "" for all samples.
        columns: column names; `caption` is the key of captions in .json members.
        seed: keys the division.
        min_side: see captions.CaptionedFiles.
        bad: list to which incomplete samples are appended, instead of raising.

    Raises:
        DataError: the tars cannot be used; NoSplit: they have nothing in this split.
    """

    def __init__(
        self,
        spec: str,
        split: str,
        *,
        columns: Columns | None = None,
        seed: int = 0,
        min_side: int | None = None,
        bad: list[Skipped] | None = None,
    ):
        split = requested_split(split, spec) if split else ""
        self.name, self.split, self.min_side = Path(spec).parent.resolve().name, split, min_side
        tars = tars_of(spec, split, alike=True)
        self.members = [m for tar in tars for m in read_index(tar, (columns or Columns()).caption, bad)]
        how = f"{len(tars)} tars named for {split}, {len(self.members)} samples"
        if split and tars and named_split(tars[0]) is None:
            first = same_bytes([m.stored for m in self.members])
            splits = drawn_splits([m.key for m in self.members], first, seed)
            how = f"divided by image, seed {seed}: {counted(dict(zip(first, splits, strict=True)).values())}"
            self.members = [m for m, own in zip(self.members, splits, strict=True) if own == split]
        self.division = f"{Path(spec).name}: {how}"
        if not self.members and bad is None:
            raise NoSplit(f"{spec}: no sample in split {split!r} ({how}); name another split or other shards")

    def __len__(self) -> int:
        return len(self.members)

    def image(self, index: int) -> Pillow.Image:
        return decode(self.file(index), self.where(index), min_side=self.min_side)

    def file(self, index: int) -> bytes:
        """Bytes of the image file. Raises BadSample."""
        member = self.members[index]
        if why := wrong_size(member.size):
            raise BadSample(self.where(index), why)
        try:
            with member.shard.open("rb") as file:
                file.seek(member.start)
                data = file.read(member.size)
        except OSError as error:
            raise BadSample(self.where(index), f"cannot be read ({error.strerror})") from None
        if len(data) < member.size:
            raise BadSample(self.where(index), f"truncated after {len(data)} of {member.size} bytes")
        return data

    def stem(self, index: int) -> str:
        """The sample's key without its folder."""
        return self.members[index].key.rpartition("/")[2]

    def pictures(self) -> Sequence[int]:
        """For each sample the first one with the same image (see `copies.ListsCopies`)."""
        return same_bytes([member.stored for member in self.members])

    def captions(self, index: int) -> tuple[str, ...]:
        return self.members[index].captions

    def where(self, index: int) -> str:
        return f"{self.members[index].shard}, {self.members[index].key}"


def shards(spec: str) -> list[Path]:
    """Tars matched by a path with braces and wildcards, in order. Raises DataError if one is missing."""
    paths: list[Path] = []
    for name in braces(spec):
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        if not matches or not all(Path(m).is_file() for m in matches):
            raise DataError(f"{name}: no such shard (from {spec!r}); check the path and its braces")
        paths += map(Path, matches)
    return paths


def tars_of(spec: str, split: str, alike: bool = False) -> list[Path]:
    """Tars of `spec` that may contain a split: those named for it and those named for none; for "" all.

    Raises DataError for a name with several splits and, with `alike`, if only some tars are named for a split.
    """
    named = {tar: file_split(tar) if split else None for tar in shards(spec)}
    if alike and len({own is None for own in named.values()}) > 1:
        loose = next(tar for tar, own in named.items() if own is None)
        other = next(tar for tar, own in named.items() if own)
        raise DataError(f"{loose}: named for no split, though {other.name} is; rename it, or pass tars of one kind")
    return [tar for tar, own in named.items() if own in (split, None)]


def braces(pattern: str) -> Iterator[str]:
    """Brace expansion: ``x-{08..10}-{a,b}`` gives x-08-a, x-08-b, x-09-a, … Raises DataError for a descending range."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        yield pattern
        return
    first, last, choices = match.groups()
    if choices is None and not 0 <= int(last) - int(first) < 1_000_000:
        raise DataError(f"{pattern}: the range {match[0]} is empty or longer than a million; correct it")
    values = choices.split(",") if choices else [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    for value in values:
        yield from braces(pattern[: match.start()] + value + pattern[match.end() :])


def read_index(shard: Path, caption: str = "caption", bad: list[Skipped] | None = None) -> list[Member]:
    """Samples of a tar, grouped by key, wherever in the tar their members are.

    `caption` is the key of captions in .json members. Raises DataError for a damaged tar and for samples that lack a
    part or have one twice; with a list `bad` these are appended to it instead, and the readable samples are returned.
    """
    samples: dict[str, Parts] = {}
    members: list[Member] = []
    try:
        with shard.open("rb") as file, open_tar(file) as tar:
            damage = _group(shard, tar, samples)
            if damage is not None and bad is None:
                raise damage
            for place, (key, parts) in enumerate(samples.items()):
                try:
                    members.append(_member(shard, tar, key, parts, caption))
                except DataError as error:
                    if bad is None:
                        raise
                    where = f"{shard}, {key}"
                    bad.append(Skipped(place, where, str(error).removeprefix(where).lstrip(":, ")))
            if damage is not None:
                raise damage
    except DAMAGE as error:
        why = f"not a whole uncompressed tar ({error})"
        if bad is None:
            raise DataError(f"{shard}: {why}; write the shard again") from None
        bad.append(Skipped(len(samples), str(shard), f"{why}; the rest is lost"))
    except OSError as error:
        raise DataError(f"{shard}: cannot be read ({error.strerror}); check the path and its disk") from None
    return members


def _group(shard: Path, tar: tarfile.TarFile, samples: dict[str, Parts]) -> Exception | None:
    """Adds a tar's members to `samples` by key, up to the first damage, which is returned; None if there is none."""
    try:
        for info in headers(tar):
            if (named := name_of(info)) is not None:
                key, suffix = named
                parts = samples.setdefault(key, {})
                parts[suffix] = twice(suffix, f"{shard}, {key}") if suffix in parts else info
    except DAMAGE as error:
        return error
    return None


def _member(shard: Path, tar: tarfile.TarFile, key: str, parts: Parts, caption: str) -> Member:
    where = f"{shard}, {key}"
    image, text, suffix = picture_and_text(parts, where)
    captions = captions_in(read_text(tar, text, where), suffix, caption, shard, where)
    return Member(shard, key, image.offset_data, image.size, captions)
