"""WebDataset tars as a random-access source: their headers are scanned once, and nothing is ever unpacked."""

from __future__ import annotations

import glob
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image as Pillow

from diptych.data.decode import MAX_PIXELS, decode
from diptych.data.folder import need, parse_json
from diptych.data.formats import Columns, drawn_split, named_split
from diptych.data.source import BadSample, DataError
from diptych.data.tally import Skipped

T = TypeVar("T")

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")
MOST_TEXT = 1_000_000  # bytes of a caption's file


@dataclass(frozen=True)
class Member:
    """One sample of a shard: where its picture's bytes lie, and what is said about it."""

    shard: Path
    key: str
    start: int
    size: int
    captions: tuple[str, ...]


class CaptionedShards:
    """Captioned images in tars (see `source.Captioned`): ``key.jpg`` (or png, webp) beside ``key.txt`` or ``key.json``.

    `spec` may hold braces (``{000..003}``, ``{a,b}``) and wildcards. A shard whose name speaks of a split belongs to
    it; otherwise samples are divided 90/5/5 by key. Split "" has them all. Raises DataError, unless there is a list of
    `bad` samples to enter those in that lack a part.
    """

    def __init__(
        self, spec: str, split: str, *, columns: Columns | None = None, seed: int = 0, least: int | None = None,
        bad: list[Skipped] | None = None,
    ):  # fmt: skip
        self.name, self.split, self.least = Path(spec).parent.resolve().name, split, least
        self.members: list[Member] = []
        for shard in shards(spec):
            named = named_split(shard)
            if named in (split, None) or not split:
                found = read_index(shard, (columns or Columns()).caption, bad)
                self.members += [m for m in found if named or not split or drawn_split(m.key, seed) == split]
        if not self.members and bad is None:
            raise DataError(f"{spec}: no sample in split {split!r}; name another split or other shards")

    def __len__(self) -> int:
        return len(self.members)

    def image(self, index: int) -> Pillow.Image:
        return decode(self.file(index), self.where(index), least=self.least)

    def file(self, index: int) -> bytes:
        """The picture's file as it lies. Raises BadSample."""
        member = self.members[index]
        if member.size > 4 * MAX_PIXELS:
            raise BadSample(self.where(index), f"{member.size} bytes are more than the limit of {4 * MAX_PIXELS}")
        try:
            with member.shard.open("rb") as file:
                file.seek(member.start)
                return file.read(member.size)
        except OSError as error:
            raise BadSample(self.where(index), f"cannot be read ({error.strerror})") from None

    def stem(self, index: int) -> str:
        """The sample's key, without its folder: how others name what they say of its picture."""
        return self.members[index].key.rpartition("/")[2]

    def captions(self, index: int) -> tuple[str, ...]:
        return self.members[index].captions

    def where(self, index: int) -> str:
        return f"{self.members[index].shard}, {self.members[index].key}"


def shards(spec: str) -> list[Path]:
    """The tars that a brace glob names, in order. Raises DataError where one is missing."""
    found: list[Path] = []
    for name in braces(spec):
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        if not matches or not all(Path(m).is_file() for m in matches):
            raise DataError(f"{name}: no such shard (from {spec!r}); check the braces")
        found += map(Path, matches)
    return found


def braces(pattern: str) -> Iterator[str]:
    """``x-{08..10}-{a,b}`` → x-08-a, x-08-b, x-09-a, … Raises DataError for a range that runs backwards."""
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
    """The samples of a tar; `caption` is the key of a caption in a .json member. Raises DataError, also for a sample
    without all its parts, unless there is a list of `bad` ones to enter it in.
    """
    try:
        with tarfile.open(shard, "r:") as tar:
            samples: dict[str, dict[str, tarfile.TarInfo]] = {}
            for info in tar:
                if (named := name_of(info)) is not None:
                    samples.setdefault(named[0], {})[named[1]] = info
            found = []
            for place, (key, parts) in enumerate(samples.items()):
                try:
                    found.append(_member(shard, tar, key, parts, caption))
                except DataError as error:
                    if bad is None:
                        raise
                    bad.append(
                        Skipped(place, f"{shard}, {key}", str(error).removeprefix(f"{shard}, {key}").lstrip(":, "))
                    )
            return found
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise DataError(f"{shard}: not a whole uncompressed tar ({error}); write the shard again") from None


def _member(shard: Path, tar: tarfile.TarFile, key: str, parts: dict[str, tarfile.TarInfo], caption: str) -> Member:
    where = f"{shard}, {key}"
    picture, text, suffix = picture_and_text(parts, where)
    captions = captions_in(read_text(tar, text, where), suffix, caption, where)
    return Member(shard, key, picture.offset_data, picture.size, captions)


def name_of(info: tarfile.TarInfo) -> tuple[str, str] | None:
    """The key of the sample that a member belongs to, and its suffix; None for what is no picture and no caption.

    WebDataset: a key ends at the first dot.
    """
    folder, _, name = info.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    if not info.isreg() or info.issparse() or suffix.lower() not in (*IMAGES, *TEXTS):
        return None
    return f"{folder}/{stem}".lstrip("/"), suffix.lower()


def picture_and_text(parts: Mapping[str, T], where: str) -> tuple[T, T, str]:
    """Of a sample's members the picture, the caption and the caption's suffix. Raises DataError where one is missing."""
    picture = next((parts[s] for s in IMAGES if s in parts), None)
    suffix = next((s for s in TEXTS if s in parts), None)
    if picture is None or suffix is None:
        lacks = "picture (" + ", ".join(IMAGES) + ")" if picture is None else "caption (" + ", ".join(TEXTS) + ")"
        raise DataError(f"{where}: no {lacks} beside {', '.join(sorted(parts))}; write the shard again")
    return picture, parts[suffix], suffix


def read_text(tar: tarfile.TarFile, info: tarfile.TarInfo, where: str) -> str:
    """A caption's file. Raises DataError."""
    if info.size > MOST_TEXT:
        raise DataError(f"{where}: its caption has {info.size} bytes, more than {MOST_TEXT}; write the shard again")
    file = tar.extractfile(info)
    try:
        return (file.read() if file else b"").decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: its caption is not UTF-8 at byte {error.start}; write the shard again") from None


def captions_in(said: str, suffix: str, caption: str, where: str) -> tuple[str, ...]:
    """What a caption's file says; in a .json under the key `caption`. Raises DataError."""
    if suffix == "json":
        found = need(parse_json(said, Path(where)), caption, (str, list), where)
        captions = tuple(found) if isinstance(found, list) else (found,)
    else:
        captions = (said,)
    if not all(isinstance(c, str) for c in captions):
        raise DataError(f"{where}, {caption!r}: a list of something else than strings; write the shard again")
    return captions or ("",)
