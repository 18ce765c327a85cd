"""Limits on what an image file's header announces, checked on its bytes before it is decoded.

Pillow reads markers, chunks, comments and strips one by one in Python, and libjpeg visits all pixels once per scan: a
file of a megabyte can keep either busy for minutes. Each check here stops at its limit, so it is cheap on any file.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import islice

MAX_SCANNED = 2_000_000_000  # scans x pixels of a progressive JPEG; usual ones have about 10 scans
FREE_BLOCKS = 10_000  # markers, chunks or sub-blocks allowed in any file; one more per KiB
MAX_JUNK = 10_000  # bytes between markers before a JPEG's first scan
MAX_VALUES = 200_000  # values of one TIFF tag: strip offsets, palette colours
PPM_HEADER = 4096  # bytes within which a PPM's header and comments must end

_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_NO_LENGTH = (0x01, 0xD8)  # JPEG markers without a length
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_PPM = re.compile(rb"P\w{1,5}(?:(?:\s|#[^\r\n]*[\r\n])+[-+.\w]+){2,3}\s")
_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF....WEBP|BM....\0{4}|II[*+]\0|MM\0[*+]|P[1-6f]\s", re.DOTALL
)
_VALUE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # by TIFF type


class Excessive(ValueError):
    """An image file that announces more work than any real image needs."""


def has_image_signature(data: bytes) -> bool:
    """Whether a file that begins with `data` (16 bytes are enough) is of a format that `decode` reads."""
    return _SIGNATURE.match(data) is not None


def check_header(data: bytes) -> None:
    """Raises Excessive if a file has more markers, chunks, comments or tags than a real image."""
    if data.startswith(b"\xff\xd8"):
        _check_number(data, _jpeg_markers(data), "markers")
    elif data.startswith(b"\x89PNG"):
        _check_number(data, _png_chunks(data), "chunks")
        _check_number(data, (kind for kind in _png_chunks(data) if kind == b"iCCP"), "colour profiles", limit=1)
    elif data.startswith(b"GIF8"):
        _check_number(data, _gif_blocks(data), "blocks before its first frame")
    elif data.startswith((b"II", b"MM")):
        _check_number(data, _tiff_tags(data), "tags")
    elif re.match(rb"P[0-6fy]", data) and not _PPM.match(data[:PPM_HEADER]):
        raise Excessive(f"its header does not end within {PPM_HEADER} bytes")


def check_scans(data: bytes, pixels: int) -> None:
    """Raises Excessive if a JPEG has too many scans for its size. A tiny image counts as 64 x 64 pixels."""
    if data.startswith(b"\xff\xd8"):
        scans = sum(code == _START_OF_SCAN for code in _jpeg_markers(data))
        if scans * max(pixels, 4096) > MAX_SCANNED:
            raise Excessive(f"its {scans} scans of {pixels} pixels exceed the limit of {MAX_SCANNED} scans x pixels")


def _check_number(data: bytes, blocks: Iterator[object], what: str, limit: int | None = None) -> None:
    limit = FREE_BLOCKS + len(data) // 1024 if limit is None else limit
    if sum(1 for _ in islice(blocks, limit + 1)) > limit:
        raise Excessive(f"it has more than {limit} {what} in {len(data)} bytes")


def _jpeg_markers(data: bytes) -> Iterator[int]:
    """Marker codes of a JPEG up to its end, located as libjpeg does: by their lengths, and by search after a scan."""
    at, scanning = 2, False
    while (marker := _MARKER.search(data, at)) is not None:
        if not scanning and marker.start() - at > MAX_JUNK:
            raise Excessive(f"it has {marker.start() - at} bytes of padding at byte {at}, more than {MAX_JUNK}")
        code, at = marker[1][0], marker.end()
        yield code
        if code == _END_OF_IMAGE:
            return
        if code not in _NO_LENGTH:
            at += max(2, int.from_bytes(data[at : at + 2]))
            scanning = scanning or code == _START_OF_SCAN
    if not scanning and len(data) - at > MAX_JUNK:
        raise Excessive(f"it has {len(data) - at} bytes of padding at byte {at}, more than {MAX_JUNK}")


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """Types of a PNG's chunks."""
    at = 8
    while at + 8 <= len(data):
        yield data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4])


def _gif_blocks(data: bytes) -> Iterator[int]:
    """Sizes of the sub-blocks of all extensions before a GIF's first frame; 0 where an extension begins."""
    palette = 3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0
    at = 13 + palette
    while data[at : at + 1] not in (b"", b",", b";"):
        extension = data[at] == 0x21
        at += 2 if extension else 1
        yield 0
        while extension and data[at : at + 1] not in (b"", b"\0"):
            yield data[at]
            at += 1 + data[at]
        at += extension


def _tiff_tags(data: bytes) -> Iterator[int]:
    """Tags of a TIFF's first directory. Raises Excessive if one has more than MOST_VALUES values."""
    order, big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    first, entry = (struct.Struct(order + "Q"), "HHQ8s") if big else (struct.Struct(order + "I"), "HHI4s")
    number, tag = struct.Struct(order + ("Q" if big else "H")), struct.Struct(order + entry)
    header = data[8:16] if big else data[4:8]
    if len(header) < first.size:
        return
    (at,) = first.unpack(header)
    if at + number.size > len(data):
        return
    (count,) = number.unpack_from(data, at)
    at += number.size
    for place in range(at, min(at + count * tag.size, len(data) - tag.size + 1), tag.size):
        code, kind, values, _ = tag.unpack_from(data, place)
        if values > MAX_VALUES and kind in _VALUE_BYTES:
            raise Excessive(f"its tag {code} has {values} values, more than {MAX_VALUES}")
        yield code
