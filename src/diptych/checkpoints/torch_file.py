"""PyTorch's files, as zip archives and in the older format; each tensor is checked before its storage is read."""

from __future__ import annotations

import io
import math
import mmap
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.checkpoints.torch_pickle import Storage, TensorRef, UnsafePickle, load_pickle

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MAX_DIMENSIONS = 16
CHUNK_BYTES = 2**24  # read at once


class CorruptFile(ValueError):
    """A file declares more than it holds, or is inconsistent; the message names the difference."""


@dataclass
class TorchFile:
    """A file: `content`, with a TensorRef for each tensor, and `read`, a function from a storage's key to its bytes."""

    content: Any
    sizes: dict[str, int]  # bytes of each storage
    read: Callable[[str], bytearray]

    def __post_init__(self) -> None:
        self._bytes: dict[str, bytearray] = {}

    def tensor(self, ref: TensorRef) -> Tensor:
        """The tensor of a reference. Raises CorruptFile, before it reads, if the tensor exceeds its storage."""
        storage, width = ref.storage, ref.dtype.itemsize
        size = self.sizes.get(storage.key)
        if size is None:
            raise CorruptFile("its storage is not in the file")
        declared = storage.numel * _item_bytes(storage)
        if not 0 <= declared <= size:
            raise CorruptFile(f"its storage declares {declared} bytes, but the file holds {size}")
        start = ref.offset + storage.start
        _check_bounds(ref, start, size // width)
        if storage.key not in self._bytes:
            self._bytes[storage.key] = self.read(storage.key)
        data = self._bytes[storage.key]
        if not size // width:
            return torch.empty(ref.size, dtype=ref.dtype)
        flat = torch.frombuffer(data, dtype=ref.dtype, count=size // width)
        return flat.as_strided(ref.size, ref.stride, start)

    def release(self) -> None:
        """Drops the references to the bytes that were read; tensors keep those that they use."""
        self._bytes.clear()


def _item_bytes(storage: Storage) -> int:
    """The size of one element of a storage in bytes."""
    return storage.dtype.itemsize if storage.dtype else 1


def _check_bounds(ref: TensorRef, start: int, capacity: int) -> None:
    """Raises CorruptFile unless a tensor lies within the `capacity` elements of its storage."""
    size, stride = ref.size, ref.stride
    if any(type(n) is not int or n < 0 for n in (*size, *stride, start)) or len(size) != len(stride):
        raise CorruptFile("its shape is invalid; expected sizes, strides and an offset of at least 0")
    if len(size) > MAX_DIMENSIONS:
        raise CorruptFile(f"it has {len(size)} dimensions; expected at most {MAX_DIMENSIONS}")
    last = start + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if math.prod(size) else -1
    if math.prod(size) > capacity or last >= capacity:
        raise CorruptFile(f"it has shape {size}, larger than its storage")


def open_torch_file(path: Path) -> TorchFile:
    """The content of a .pth, .pt, .ckpt or .bin file.

    Raises:
        UnsafePickle: the pickle names code, or is not a saved state_dict.
        CorruptFile: the file does not hold what it declares.
        Exception: whatever zipfile and pickletools raise for damaged files.
    """
    return _open_archive(path) if zipfile.is_zipfile(path) else _open_legacy(path)


def _open_archive(path: Path) -> TorchFile:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise CorruptFile(f"an archive with {len(pickles)} files data.pkl; expected one")
        folder = pickles[0].removesuffix("data.pkl")
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in entries else b"little"
        if order != b"little":
            raise CorruptFile("its byte order is big-endian; expected little-endian")
        content = load_pickle(io.BytesIO(archive.read(pickles[0])))
    stem = f"{folder}data/"
    sizes = {name.removeprefix(stem): e.file_size for name, e in entries.items() if name.startswith(stem)}

    def read(key: str) -> bytearray:
        data = bytearray(sizes[key])
        with zipfile.ZipFile(path) as archive, archive.open(f"{stem}{key}") as file:
            position = 0
            while chunk := file.read(CHUNK_BYTES):
                data[position : position + len(chunk)] = chunk
                position += len(chunk)
        if position < len(data):
            raise CorruptFile(f"storage {key} ends early")
        return data

    return TorchFile(content, sizes, read)


def _open_legacy(path: Path) -> TorchFile:
    """The format before PyTorch 1.6: a sequence of pickles, then each storage as its length and its bytes."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if load_pickle(data) != MAGIC or load_pickle(data) != PROTOCOL:
            raise UnsafePickle("a pickle that is not a saved state_dict")
        system = load_pickle(data)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise CorruptFile("its byte order is big-endian; expected little-endian")
        storages: dict[str, Storage] = {}
        content, keys = load_pickle(data, storages), load_pickle(data)
        spans: dict[str, tuple[int, int]] = {}
        for key in keys if isinstance(keys, list) else []:
            numel = int.from_bytes(data.read(8), "little")
            begin, end = data.tell(), data.tell() + numel * _item_bytes(storages[str(key)])
            if end > len(data):
                left = len(data) - begin
                raise CorruptFile(f"storage {key} declares {end - begin} bytes, but the file has {left} left")
            spans[str(key)] = (begin, end)
            data.seek(end)

    def read(key: str) -> bytearray:
        begin, end = spans[key]
        data = bytearray(end - begin)
        with path.open("rb") as file:
            file.seek(begin)
            if file.readinto(data) < len(data):
                raise CorruptFile(f"storage {key} ends early")
        return data

    return TorchFile(content, {key: end - begin for key, (begin, end) in spans.items()}, read)
