"""What stands in WebDataset tars, told without unpacking them: their members, and the parts of a sample."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from diptych.data.cells import captions, captions_in_text
from diptych.data.folder import parse_json
from diptych.data.source import DataError

T = TypeVar("T")

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")
MOST_TEXT = 1_000_000  # bytes of a caption's file
MOST_PICTURE = 64 << 20  # bytes of a picture's file: a stream holds many of them
# what a tar that is not whole, or is made to do harm, may raise: `tarfile` trusts sizes, and headers that announce headers
DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, IndexError, MemoryError, RecursionError)


def headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """A tar's members, one after the other, none of them kept. Raises one of DAMAGE where it is not whole: `tarfile` itself
    takes a damaged header for the end.
    """
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        if info.size < 0:  # it would lead back to what was read before, without end
            raise tarfile.ReadError(f"a size below 0 at byte {info.offset}")
        yield info
    file: Any = tar.fileobj
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {tar.offset}")


def name_of(info: tarfile.TarInfo) -> tuple[str, str] | None:
    """The key of the sample that a member belongs to, and its suffix; None for what is no picture and no caption.

    WebDataset: a key ends at the first dot.
    """
    folder, _, name = info.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    if not info.isreg() or info.issparse() or suffix.lower() not in (*IMAGES, *TEXTS):
        return None
    return f"{folder}/{stem}".lstrip("/"), suffix.lower()


def picture_and_text(parts: Mapping[str, T | DataError], where: str) -> tuple[T, T, str]:
    """Of a sample's members the picture, the caption and the caption's suffix. Raises DataError where one is missing, and
    what is wrong with one.
    """
    suffix = next((s for s in TEXTS if s in parts), None)
    drawn = next((s for s in IMAGES if s in parts), None)
    if drawn is None or suffix is None:
        lacks = "picture (" + ", ".join(IMAGES) + ")" if drawn is None else "caption (" + ", ".join(TEXTS) + ")"
        raise DataError(f"{where}: no {lacks} beside {', '.join(sorted(parts))}; write the shard again")
    picture, text = parts[drawn], parts[suffix]
    for part in (picture, text):
        if isinstance(part, DataError):
            raise part
    return picture, text, suffix  # type: ignore[return-value]


def twice(suffix: str, where: str) -> DataError:
    """What is wrong with a sample that has two members by that suffix: nobody knows which of them is meant."""
    return DataError(f"{where}: its .{suffix} comes twice; give each sample a key of its own")


def wrong_size(size: int) -> str:
    """Why a picture's file of so many bytes is not read; "" where it is."""
    if size > MOST_PICTURE:
        return f"its picture has {size} bytes, more than {MOST_PICTURE}; write the shard again"
    return "" if size else "its picture has no bytes; write the shard again"


def read_text(tar: tarfile.TarFile, info: tarfile.TarInfo, where: str) -> str:
    """A caption's file. Raises DataError."""
    if info.size > MOST_TEXT:
        raise DataError(f"{where}: its caption has {info.size} bytes, more than {MOST_TEXT}; write the shard again")
    try:
        file = tar.extractfile(info)
        return (file.read() if file else b"").decode()
    except tarfile.TarError:
        raise DataError(f"{where}: its caption is cut off; write the shard again") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: its caption is not UTF-8 at byte {error.start}; write the shard again") from None


def captions_in(said: str, suffix: str, caption: str, where: str) -> tuple[str, ...]:
    """The captions in a sample's text member: its own text, or in a .json what stands under the key `caption`. Raises DataError."""
    if suffix == "json":
        return captions(parse_json(said, Path(where)), caption, where) or ("",)
    return captions_in_text(said, where) or ("",)
