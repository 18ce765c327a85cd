"""Samples read from a tar one after the other, as they lie in it; what cannot be one has its reason."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from diptych.data.source import DataError
from diptych.data.tars import (
    DAMAGE,
    TEXTS,
    captions_in,
    headers,
    name_of,
    open_tar,
    picture_and_text,
    read_text,
    twice,
    wrong_size,
)


@dataclass(frozen=True)
class Raw:
    """A sample as it lies in its tar, not decoded; or what cannot be one, and why it is `bad`."""

    where: str
    id: int  # of its tar's name and its key
    picture: bytes
    captions: tuple[str, ...]
    bad: str = ""


def raws(shard: Path, byte: int = 0) -> Iterator[tuple[Raw, int]]:
    """The samples of a tar from `byte` on, in their order, each with the byte behind it. A sample's members are neighbours.

    One that lacks a part, has one twice or too large a one (tars.MOST_PICTURE) comes as a bad one; so does, once, all that
    lies behind a place where the tar is damaged. A key that comes again behind other samples is another sample, as in webdataset:
    nothing of what lies before `byte` is known. Raises DataError where the tar cannot be read at all.
    """
    at = byte
    try:
        with shard.open("rb") as file:
            file.seek(byte)
            key, parts = "", dict[str, str | bytes | DataError]()
            try:
                with open_tar(file) as tar:
                    for info in headers(tar):
                        if (named := name_of(info)) is None:
                            continue
                        if parts and named[0] != key:
                            yield _raw(shard, key, parts), info.offset
                            parts = {}
                        key, suffix = named
                        at = tar.offset
                        where = f"{shard}, {key}"
                        parts[suffix] = twice(suffix, where) if suffix in parts else _content(tar, info, suffix, where)
                if parts:
                    yield _raw(shard, key, parts), at
            except DAMAGE as error:
                if parts:
                    yield _raw(shard, key, parts), at
                why = f"not a whole uncompressed tar ({error}); what lies behind is lost"
                yield _bad(f"{shard}, byte {at}", shard, f"byte {at}", why), shard.stat().st_size
    except OSError as error:
        raise DataError(f"{shard}: cannot be read ({error.strerror}); see whether its disk is there") from None


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo, suffix: str, where: str) -> str | bytes | DataError:
    if suffix in TEXTS:
        try:
            return read_text(tar, info, where)
        except DataError as error:
            return error
    if why := wrong_size(info.size):
        return DataError(f"{where}: {why}")
    file = tar.extractfile(info)
    return file.read() if file else b""


def _raw(shard: Path, key: str, parts: Mapping[str, str | bytes | DataError]) -> Raw:
    where = f"{shard}, {key}"
    try:
        picture, said, suffix = picture_and_text(parts, where)
        assert isinstance(said, str)
        captions = captions_in(said, suffix, "caption", where)
    except DataError as error:
        return _bad(where, shard, key, str(error).removeprefix(where).lstrip(":, "))
    return Raw(where, _number(shard, key), bytes(picture), captions)  # type: ignore[arg-type]


def _bad(where: str, shard: Path, key: str, why: str) -> Raw:
    return Raw(where, _number(shard, key), b"", ("",), why)


def _number(shard: Path, key: str) -> int:
    digest = hashlib.blake2b(f"{shard.name}/{key}".encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
