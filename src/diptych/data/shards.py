"""WebDataset tars as a random-access source: their headers are scanned once, and nothing is ever unpacked."""

from __future__ import annotations

import glob
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as Pillow

from diptych.data.decode import MAX_PIXELS, decode
from diptych.data.folder import need, parse_json
from diptych.data.formats import Columns, drawn_split, named_split
from diptych.data.source import BadSample, DataError

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
    it; otherwise samples are divided 90/5/5 by key. Raises DataError.
    """

    def __init__(
        self, spec: str, split: str, *, columns: Columns | None = None, seed: int = 0, least: int | None = None
    ):
        self.name, self.split, self.least = Path(spec).parent.resolve().name, split, least
        self.members: list[Member] = []
        for shard in shards(spec):
            named = named_split(shard)
            if named in (split, None):
                found = read_index(shard, (columns or Columns()).caption)
                self.members += [m for m in found if named or drawn_split(m.key, seed) == split]
        if not self.members:
            raise DataError(f"{spec}: no sample in split {split!r}; name another split or other shards")

    def __len__(self) -> int:
        return len(self.members)

    def image(self, index: int) -> Pillow.Image:
        member = self.members[index]
        if member.size > 4 * MAX_PIXELS:
            raise BadSample(self.where(index), f"{member.size} bytes are more than the limit of {4 * MAX_PIXELS}")
        try:
            with member.shard.open("rb") as file:
                file.seek(member.start)
                data = file.read(member.size)
        except OSError as error:
            raise BadSample(self.where(index), f"cannot be read ({error.strerror})") from None
        return decode(data, self.where(index), least=self.least)

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


def read_index(shard: Path, caption: str = "caption") -> list[Member]:
    """The samples of a tar; `caption` is the key of a caption in a .json member. Raises DataError."""
    try:
        with tarfile.open(shard, "r:") as tar:
            samples: dict[str, dict[str, tarfile.TarInfo]] = {}
            for info in tar:
                folder, _, name = info.name.rpartition("/")
                stem, _, suffix = name.partition(".")  # WebDataset: the key ends at the first dot
                if info.isreg() and not info.issparse() and suffix.lower() in (*IMAGES, *TEXTS):
                    samples.setdefault(f"{folder}/{stem}".lstrip("/"), {})[suffix.lower()] = info
            return [_member(shard, tar, key, parts, caption) for key, parts in samples.items()]
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise DataError(f"{shard}: not a whole uncompressed tar ({error}); write the shard again") from None


def _member(shard: Path, tar: tarfile.TarFile, key: str, parts: dict[str, tarfile.TarInfo], caption: str) -> Member:
    where = f"{shard}, {key}"
    picture = next((parts[s] for s in IMAGES if s in parts), None)
    text = next((parts[s] for s in TEXTS if s in parts), None)
    if picture is None or text is None:
        lacks = "picture (" + ", ".join(IMAGES) + ")" if picture is None else "caption (" + ", ".join(TEXTS) + ")"
        raise DataError(f"{where}: no {lacks} beside {', '.join(sorted(parts))}; write the shard again")
    if text.size > MOST_TEXT:
        raise DataError(f"{where}: its caption has {text.size} bytes, more than {MOST_TEXT}; write the shard again")
    file = tar.extractfile(text)
    try:
        said = (file.read() if file else b"").decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: its caption is not UTF-8 at byte {error.start}; write the shard again") from None
    if text.name.lower().endswith(".json"):
        said = need(parse_json(said, Path(where)), caption, (str, list), where)
    captions = tuple(said) if isinstance(said, list) else (said,)
    if not all(isinstance(c, str) for c in captions):
        raise DataError(f"{where}, {caption!r}: a list of something else than strings; write the shard again")
    return Member(shard, key, picture.offset_data, picture.size, captions or ("",))
