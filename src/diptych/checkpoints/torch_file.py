"""PyTorch's files, as archives and in the older form: each tensor is compared with what the file holds before it is read."""

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

from diptych.checkpoints.torch_pickle import Claim, Storage, UnsafePickle, unpickled

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MOST_DIMENSIONS = 16
PIECE = 2**24  # bytes that are read at once


class Broken(ValueError):
    """A file that does not hold what it announces; the message names the difference."""


@dataclass
class TorchFile:
    """What a file holds: `content`, with tensors as claims, and a way to read a storage's bytes by its key."""

    content: Any
    sizes: dict[str, int]  # bytes of each storage
    read: Callable[[str], bytearray]

    def __post_init__(self) -> None:
        self._bytes: dict[str, bytearray] = {}

    def tensor(self, claim: Claim) -> Tensor:
        """The tensor of a claim. Raises Broken where it reaches beyond its storage, which is then not read."""
        storage, width = claim.storage, claim.dtype.itemsize
        held = self.sizes.get(storage.key)
        if held is None:
            raise Broken("its storage is not in the file")
        announced = storage.numel * _width(storage)
        if not 0 <= announced <= held:
            raise Broken(f"its storage announces {announced} bytes where the file holds {held}")
        start = claim.offset + storage.start
        _check_bounds(claim, start, held // width)
        if storage.key not in self._bytes:
            self._bytes[storage.key] = self.read(storage.key)
        data = self._bytes[storage.key]
        if not held // width:
            return torch.empty(claim.size, dtype=claim.dtype)
        flat = torch.frombuffer(data, dtype=claim.dtype, count=held // width)
        return flat.as_strided(claim.size, claim.stride, start)

    def forget(self) -> None:
        """Gives back the bytes that were read, but for those that tensors still use."""
        self._bytes.clear()


def _width(storage: Storage) -> int:
    """Bytes of one of its numbers."""
    return storage.dtype.itemsize if storage.dtype else 1


def _check_bounds(claim: Claim, start: int, room: int) -> None:
    size, stride = claim.size, claim.stride
    if any(type(n) is not int or n < 0 for n in (*size, *stride, start)) or len(size) != len(stride):
        raise Broken("its shape is none")
    if len(size) > MOST_DIMENSIONS:
        raise Broken(f"it has {len(size)} dimensions")
    last = start + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if math.prod(size) else -1
    if math.prod(size) > room or last >= room:
        raise Broken(f"it claims {size}, more than is stored for it")


def opened(path: Path) -> TorchFile:
    """A .pth, .pt, .ckpt or .bin. Raises UnsafePickle, Broken, and what zipfile and pickletools raise on broken files."""
    return _archive(path) if zipfile.is_zipfile(path) else _older(path)


def _archive(path: Path) -> TorchFile:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise Broken(f"an archive with {len(pickles)} files data.pkl, where PyTorch's has one")
        folder = pickles[0].removesuffix("data.pkl")
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in entries else b"little"
        if order != b"little":
            raise Broken("its numbers have the other order of bytes")
        content = unpickled(io.BytesIO(archive.read(pickles[0])))
    stem = f"{folder}data/"
    sizes = {name.removeprefix(stem): e.file_size for name, e in entries.items() if name.startswith(stem)}

    def read(key: str) -> bytearray:
        data = bytearray(sizes[key])
        with zipfile.ZipFile(path) as archive, archive.open(f"{stem}{key}") as file:
            at = 0
            while part := file.read(PIECE):
                data[at : at + len(part)] = part
                at += len(part)
        if at < len(data):
            raise Broken(f"storage {key} ends early")
        return data

    return TorchFile(content, sizes, read)


def _older(path: Path) -> TorchFile:
    """The form before PyTorch 1.6: pickles one behind the other, then each storage as its length and its bytes."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if unpickled(data) != MAGIC or unpickled(data) != PROTOCOL:
            raise UnsafePickle("a pickle that is no saved state_dict")
        system = unpickled(data)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise Broken("its numbers have the other order of bytes")
        storages: dict[str, Storage] = {}
        content, keys = unpickled(data, storages), unpickled(data)
        spans: dict[str, tuple[int, int]] = {}
        for key in keys if isinstance(keys, list) else []:
            numel = int.from_bytes(data.read(8), "little")
            begin, end = data.tell(), data.tell() + numel * _width(storages[str(key)])
            if end > len(data):
                raise Broken(f"storage {key} announces {end - begin} bytes where the file has {len(data) - begin} left")
            spans[str(key)] = (begin, end)
            data.seek(end)

    def read(key: str) -> bytearray:
        begin, end = spans[key]
        held = bytearray(end - begin)
        with path.open("rb") as file:
            file.seek(begin)
            if file.readinto(held) < len(held):
                raise Broken(f"storage {key} ends early")
        return held

    return TorchFile(content, {key: end - begin for key, (begin, end) in spans.items()}, read)
