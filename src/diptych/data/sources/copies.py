"""Which pictures are one and the same: those whose bytes are equal, under whatever names they lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

BEGINNING, PIECE = 4096, 1 << 20  # bytes that are compared first; that are read at a time
SHORTEST = 12  # bytes: shorter files are no pictures of any format, but hold the place of some


class Stored(NamedTuple):
    """Where a picture's bytes lie: `size` of them from byte `start` of a file."""

    path: Path
    start: int
    size: int


@runtime_checkable
class TellsCopies(Protocol):
    """A source that can say which of its images are the same picture."""

    def pictures(self) -> Sequence[int]:
        """Of each image the first one with the same bytes: itself, where there is none before."""
        ...


def pictures_of(source: object, num_images: int) -> Sequence[int]:
    """Of each of a source's `images` the first that is the same picture; each its own where the source cannot say."""
    return source.pictures() if isinstance(source, TellsCopies) else range(num_images)


def stored(path: Path) -> Stored | None:
    """A file's bytes; None where it cannot be read."""
    try:
        return Stored(path, 0, path.stat().st_size)
    except OSError:
        return None


def same_bytes(places: Sequence[Stored | None]) -> list[int]:
    """Of each place the first one that holds the same bytes; itself for one that cannot be read, or is too short to be a picture.

    Sizes are compared first, then the beginnings of those of one size, then digests of those that begin alike: most files
    are not read at all, or only their first 4 KiB. The answer is exact but for a collision of 128 bits.
    """
    groups: Iterable[list[int]] = [
        [i for i, place in enumerate(places) if place is not None and place.size >= SHORTEST]
    ]
    for compared in (lambda place: place.size, _beginning, _digest):
        groups = [part for group in groups for part in _parted(group, places, compared)]
    first = list(range(len(places)))
    for group in groups:
        for i in group:
            first[i] = group[0]
    return first


def _parted(
    group: list[int], places: Sequence[Stored | None], compared: Callable[[Stored], Hashable]
) -> Iterable[list[int]]:
    """The members of a group that agree in what is `compared`, two or more together."""
    parts: dict[Hashable, list[int]] = defaultdict(list)
    for i in group:
        place = places[i]
        assert place is not None
        try:
            parts[compared(place)].append(i)
        except OSError:  # the error is raised when the picture is decoded
            continue
    return [part for part in parts.values() if len(part) > 1]


def _beginning(place: Stored) -> bytes:
    with place.path.open("rb") as file:
        file.seek(place.start)
        return blake2b(file.read(min(BEGINNING, place.size)), digest_size=16).digest()


def _digest(place: Stored) -> bytes:
    made, left = blake2b(digest_size=16), place.size
    with place.path.open("rb") as file:
        file.seek(place.start)
        while left > 0 and (data := file.read(min(PIECE, left))):
            made.update(data)
            left -= len(data)
    return made.digest()
