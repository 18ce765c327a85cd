"""Detection of copies: images with equal bytes under different names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

BEGINNING, CHUNK = 4096, 1 << 20  # bytes compared first; bytes read at a time
MIN_IMAGE_BYTES = 12  # bytes; shorter files are not images but placeholders for missing ones


class ByteRange(NamedTuple):
    """Location of an image: `size` bytes from byte `start` of a file."""

    path: Path
    start: int
    size: int


@runtime_checkable
class ListsCopies(Protocol):
    """A source that detects copies among its images."""

    def pictures(self) -> Sequence[int]:
        """For each image the index of the first one with the same bytes: its own, unless it is a copy."""
        ...


def first_copies_of(source: object, num_images: int) -> Sequence[int]:
    """For each image the index of the first copy; its own index for sources that do not detect copies."""
    return source.pictures() if isinstance(source, ListsCopies) else range(num_images)


def byte_range(path: Path) -> ByteRange | None:
    """Location of a whole file; None if it cannot be read."""
    try:
        return ByteRange(path, 0, path.stat().st_size)
    except OSError:
        return None


def same_bytes(places: Sequence[ByteRange | None]) -> list[int]:
    """For each location the index of the first one with the same bytes.

    Its own index if it cannot be read or is too short for an image. Sizes are compared first, then the beginnings of
    files of equal size, then digests if those agree: most files are not read at all, or only their first 4 KiB.
    Exact up to a collision of 128-bit digests.
    """
    groups: Iterable[list[int]] = [
        [i for i, place in enumerate(places) if place is not None and place.size >= MIN_IMAGE_BYTES]
    ]
    for key in (lambda place: place.size, _beginning, _digest):
        groups = [part for group in groups for part in _partition(group, places, key)]
    first = list(range(len(places)))
    for group in groups:
        for i in group:
            first[i] = group[0]
    return first


def _partition(
    group: list[int], places: Sequence[ByteRange | None], key: Callable[[ByteRange], Hashable]
) -> Iterable[list[int]]:
    """Subgroups of two or more members with equal `key`."""
    parts: dict[Hashable, list[int]] = defaultdict(list)
    for i in group:
        place = places[i]
        assert place is not None
        try:
            parts[key(place)].append(i)
        except OSError:  # raised again when the image is decoded
            continue
    return [part for part in parts.values() if len(part) > 1]


def _beginning(place: ByteRange) -> bytes:
    with place.path.open("rb") as file:
        file.seek(place.start)
        return blake2b(file.read(min(BEGINNING, place.size)), digest_size=16).digest()


def _digest(place: ByteRange) -> bytes:
    digest, left = blake2b(digest_size=16), place.size
    with place.path.open("rb") as file:
        file.seek(place.start)
        while left > 0 and (data := file.read(min(CHUNK, left))):
            digest.update(data)
            left -= len(data)
    return digest.digest()
