"""Reading of WebDataset tars without unpacking them: members, the parts of a sample, and samples in order.

Limits keep damaged or malicious tars from taking unbounded time or memory.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from diptych.data.sources.base import DataError
from diptych.data.sources.cells import captions, captions_in_text
from diptych.data.sources.paths import data_in_json
from diptych.data.sources.splits import known_split, named_split

T = TypeVar("T")

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")
NOT_READ = (
    "gif",
    "bmp",
    "tif",
    "tiff",
    "ppm",
    "avif",
    "heic",
    "heif",
    "jfif",
    "jpe",
    "jxl",
)  # image formats that are not read
MAX_TEXT_BYTES = 1_000_000  # bytes of a caption file
MAX_IMAGE_BYTES = 64 << 20  # bytes of an image file, because a stream keeps many of them in memory
EXTENDED_BYTES = 64 << 10  # total size of long names and pax records before one member
EXTENDED_HEADERS = 8
MAX_RECORDS = 1000  # per pax header; those of a global header are copied for every member
MAX_NUMBER_CHARS = 100  # digits in a pax header
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
# what a damaged or malicious tar may raise: `tarfile` trusts sizes, and headers that announce further headers
DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, IndexError, MemoryError, RecursionError)


def open_tar(file: BinaryIO) -> tarfile.TarFile:
    """The uncompressed tar at the file's current position. Raises one of DAMAGE.

    The headers of its first member are checked before, because `tarfile` reads them on opening.
    """
    check_announced(file, file.tell())
    return tarfile.open(fileobj=file, mode="r:", errors="backslashreplace")


def check_announced(file: BinaryIO, at: int) -> None:
    """Checks the extended headers (long names, pax records, sparse maps) before the member header at byte `at`.

    Limits them to EXTENDED_BYTES and EXTENDED_HEADERS: `tarfile` reads each of them whole, and parses pax records in
    time quadratic in the length of a number. Restores the file's position. Raises tarfile.ReadError.
    """
    position, left = file.tell(), EXTENDED_BYTES
    try:
        for _ in range(EXTENDED_HEADERS + 1):
            file.seek(at)
            block = file.read(tarfile.BLOCKSIZE)
            kind = block[156:157]
            if kind == tarfile.GNUTYPE_SPARSE:
                _check_sparse_map(file, block)
            if len(block) < tarfile.BLOCKSIZE or kind not in _EXTENDED:
                return
            try:
                size = tarfile.TarInfo.frombuf(block, "utf-8", "replace").size
            except tarfile.HeaderError:  # type: ignore[attr-defined]
                return  # not a header, which `tarfile` reports itself
            if not 0 <= size <= left:
                raise tarfile.ReadError(f"an extended header of {size} bytes at byte {at}, at most {left} expected")
            records = file.read(size)
            if kind in _PAX and (why := _wrong_records(records)):
                raise tarfile.ReadError(f"{why} in the header at byte {at}")
            left -= size
            at += tarfile.BLOCKSIZE * (1 + -(-size // tarfile.BLOCKSIZE))
        raise tarfile.ReadError(f"more than {EXTENDED_HEADERS} headers before the member at byte {at}")
    finally:
        file.seek(position)


def _wrong_records(records: bytes) -> str:
    """Reason why `tarfile` would parse a pax header too slowly; "" if it would not."""
    longest = max(map(len, re.findall(rb"[0-9]+", records)), default=0)
    if longest > MAX_NUMBER_CHARS:
        return f"a number of {longest} digits"
    if b"GNU.sparse." in records:
        return "a sparse file, which is not read,"
    number = records.count(b"\n")
    return f"{number} records" if number > MAX_RECORDS else ""


def _check_sparse_map(file: BinaryIO, block: bytes) -> None:
    """Follows the map of an old GNU sparse header, 21 parts per block. Raises tarfile.ReadError over EXTENDED_BYTES."""
    more, most = block[482:483], EXTENDED_BYTES // tarfile.BLOCKSIZE
    for _ in range(most):
        if more in (b"", b"\0"):
            return
        more = file.read(tarfile.BLOCKSIZE)[504:505]
    raise tarfile.ReadError(f"a sparse file of more than {most * 21} parts")


def headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Members of a tar in order, without keeping them in memory.

    Raises one of DAMAGE if the tar is damaged; `tarfile` itself would take a damaged header for the end.
    """
    while (info := _next(tar)) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        if info.size < 0:  # it would lead back to earlier bytes in an endless loop
            raise tarfile.ReadError(f"a negative size at byte {info.offset}")
        yield info
    file: Any = tar.fileobj
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {tar.offset}")


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    check_announced(tar.fileobj, tar.offset)  # type: ignore[arg-type]
    if len(tar.pax_headers) > MAX_RECORDS:
        raise tarfile.ReadError(f"global headers of {len(tar.pax_headers)} records before byte {tar.offset}")
    return tar.next()


def name_of(info: tarfile.TarInfo) -> tuple[str, str] | None:
    """Sample key and suffix of a member; None for members that are neither images nor captions.

    WebDataset: a key ends at the first dot. Images that are not read (``a.gif``, ``a.seg.png``, ``2.5_mm.jpg``) have a
    key too, so that a sample with no other image is reported rather than skipped.
    """
    folder, _, name = info.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    suffix = suffix.lower()
    known = suffix in TEXTS or suffix.rpartition(".")[2] in (*IMAGES, *NOT_READ)
    if not info.isreg() or info.issparse() or not known or not stem:
        return None
    return f"{folder}/{stem}".lstrip("/"), suffix


def picture_and_text(parts: Mapping[str, T | DataError], where: str) -> tuple[T, T, str]:
    """Image, caption and the caption's suffix among a sample's members.

    Raises DataError if one is missing, and the error that is stored instead of one.
    """
    suffix = next((s for s in TEXTS if s in parts), None)
    drawn, *others = [s for s in IMAGES if s in parts] or [None]
    if drawn is None or suffix is None:
        lacks = "image (" + ", ".join(IMAGES) + ")" if drawn is None else "caption (" + ", ".join(TEXTS) + ")"
        dotted = "a key ends at the first dot of its name; " if any("." in s for s in parts) else ""
        raise DataError(f"{where}: no {lacks} beside {', '.join(sorted(parts)[:5])}; {dotted}write the shard again")
    if others:
        raise DataError(f"{where}: two images, .{drawn} and .{others[0]}; give each sample one")
    image, text = parts[drawn], parts[suffix]
    for part in (image, text):
        if isinstance(part, DataError):
            raise part
    return image, text, suffix  # type: ignore[return-value]


def twice(suffix: str, where: str) -> DataError:
    """Error of a sample with two members of the same suffix."""
    return DataError(f"{where}: it has two .{suffix} members; give each sample its own key")


def wrong_size(size: int) -> str:
    """Reason why an image file of this size is not read; "" if it is."""
    if size > MAX_IMAGE_BYTES:
        return f"its image has {size} bytes, more than {MAX_IMAGE_BYTES}; write the shard again"
    return "" if size else "its image is empty; write the shard again"


def read_text(tar: tarfile.TarFile, info: tarfile.TarInfo, where: str) -> str:
    """Text of a caption file. Raises DataError."""
    if info.size > MAX_TEXT_BYTES:
        raise DataError(
            f"{where}: its caption has {info.size} bytes, more than {MAX_TEXT_BYTES}; write the shard again"
        )
    try:
        file = tar.extractfile(info)
        return (file.read() if file else b"").decode("utf-8-sig")
    except tarfile.TarError:
        raise DataError(f"{where}: its caption is truncated; write the shard again") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: its caption is not UTF-8 at byte {error.start}; write the shard again") from None


def captions_in(content: str, suffix: str, caption: str, shard: Path, where: str) -> tuple[str, ...]:
    """Captions in a sample's text member: the text itself, or the value of key `caption` of a .json.

    Raises DataError, also for a .json that names a different split than its tar.
    """
    if suffix == "json":
        record = data_in_json(content, Path(where))
        split = record.get("split") if isinstance(record, dict) else None
        if isinstance(split, str) and known_split(split) not in (None, named_split(shard)):
            raise DataError(
                f"{where}, 'split': {split!r} contradicts the tar's name; put each split into tars named for it"
            )
        return captions(record, caption, where) or ("",)
    return captions_in_text(content, where) or ("",)


@dataclass(frozen=True)
class TarSample:
    """An undecoded sample of a tar; `bad` is the reason why it cannot be used, "" if it can."""

    where: str
    id: int  # hash of the tar's name and the key
    picture: bytes
    captions: tuple[str, ...]
    bad: str = ""


def tar_samples(shard: Path, byte: int = 0) -> Iterator[tuple[TarSample, int]]:
    """Samples of a tar from `byte` on, in order, each with the byte after it. A sample's members are adjacent.

    A sample that lacks a part, has one twice or one that is too large (MOST_PICTURE) is yielded as bad; so is, once,
    everything after the first damage. A key that recurs after other samples is another sample, as in the webdataset
    library, because nothing before `byte` is read. Raises DataError if the tar cannot be read at all.
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
                why = f"not a whole uncompressed tar ({error}); the rest is lost"
                yield _bad(f"{shard}, byte {at}", shard, f"byte {at}", why), shard.stat().st_size
    except OSError as error:
        raise DataError(f"{shard}: cannot be read ({error.strerror}); check the path and its disk") from None


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo, suffix: str, where: str) -> str | bytes | DataError:
    if suffix in TEXTS:
        try:
            return read_text(tar, info, where)
        except DataError as error:
            return error
    if suffix not in IMAGES:
        return b""
    if why := wrong_size(info.size):
        return DataError(f"{where}: {why}")
    file = tar.extractfile(info)
    return file.read() if file else b""


def _raw(shard: Path, key: str, parts: Mapping[str, str | bytes | DataError]) -> TarSample:
    where = f"{shard}, {key}"
    try:
        image, text, suffix = picture_and_text(parts, where)
        assert isinstance(text, str)
        captions = captions_in(text, suffix, "caption", shard, where)
    except DataError as error:
        return _bad(where, shard, key, str(error).removeprefix(where).lstrip(":, "))
    return TarSample(where, _number(shard, key), bytes(image), captions)  # type: ignore[arg-type]


def _bad(where: str, shard: Path, key: str, why: str) -> TarSample:
    return TarSample(where, _number(shard, key), b"", ("",), why)


def _number(shard: Path, key: str) -> int:
    digest = hashlib.blake2b(f"{shard.name}/{key}".encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
