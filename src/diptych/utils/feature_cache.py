"""Disk and memory cache for expensive features: tensors by a digest of everything that they were computed from."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from zlib import crc32

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, uint8

from diptych.utils.memory import available_memory

Arrays = dict[str, Tensor]
KEY_BYTES = 20
_MAX_ENTRY = _MAX_SHARD = 64 * 2**20  # bytes
_MAX_RECORDS = 2**16  # of one shard
_MAX_OPEN = 64  # shards open for reading at once
_REFRESH_SHARE = 1 / 20  # of the time, at most, goes to looking for entries of other processes

_RECORD = struct.Struct("<20sIIII")  # key; offset, length and CRC-32 of the entry; CRC-32 of the record before it
_CHECKED = _RECORD.size - 4
_PLACE_BITS = 8 * (_CHECKED - KEY_BYTES)
_SHARD_FILE = re.compile(r"([0-9a-f]{16}-[0-9]+)\.(index|data)")
_OLD_FILE = re.compile(r"[0-9a-f]{40}\.seen")

SHARE = 1 / 16
"""The default bound of one `MemoryCache`, as a share of the memory that this process may use. A run has up to three
(images, regions, texts), and as many in each data worker.
"""


def digest(*parts: bytes | str | Tensor) -> bytes:
    """A key of 20 bytes for some values; of tensors the shape and dtype count too."""
    digest = blake2b(digest_size=KEY_BYTES)
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{tuple(part.shape)} {part.dtype} ".encode())
            part = part.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten().view(uint8).numpy().tobytes()
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)} ".encode() + data)
    return digest.digest()


def default_folder() -> Path:
    """The folder of a user's disk cache: $DIPTYCH_CACHE, or diptych/ in the user's cache folder.

    Raises:
        ValueError: neither the environment nor the system names a home folder.
    """
    if named := os.environ.get("DIPTYCH_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diptych"
    except RuntimeError:
        raise ValueError("this user has no home folder to cache features in; set DIPTYCH_CACHE to a folder") from None


class DiskCache:
    """Tensors by key, in append-only shards in `folder`, shared by any number of processes.

    A shard is two files: `*.data` contains entries end to end, each in the safetensors format, and `*.index` a record
    of fixed length for each entry (key, offset, length, checksum). A process appends to shards of its own, first the
    entry and then its record, without a buffer: an entry is visible to other processes at once, and a process that ends
    or is killed loses at most the entry that it was writing. Shards that become visible whole, by a rename, would need
    a buffer, which is lost with a killed process and must be kept apart from those of forked data workers.

    An entry or record whose checksum does not match is treated as absent. Nothing that is read runs code.
    Before a shard is begun, the oldest shards are removed whole until a full one fits in `max_bytes`: several
    processes that write at once exceed it by at most one shard each. Entries of removed shards are absent. Files of
    version 0.1.0 (one `*.seen` file an entry) are not read; they are removed before any shard.
    The locations of all entries are kept in memory, about 150 bytes an entry. Entries of other processes are looked for
    when a key is missing, which takes at most a twentieth of the time.
    If `folder` cannot be written, one warning says so, and no more is written. For one thread; forked processes may
    go on using the cache of their parent.
    """

    def __init__(self, folder: Path, max_bytes: float = 8e9):
        self.folder, self.max_bytes = folder, max_bytes
        self._places: dict[bytes, int] = {}  # key -> number of its shard << _PLACE_BITS | offset, length, CRC-32
        self._shards: dict[int, _Shard] = {}
        self._count = 0  # of all shards so far: numbers are not reused
        self._readers: OrderedDict[int, FileIO] = OrderedDict()  # in order of last use
        self._writer: _ShardWriter | None = None
        self._next_refresh = 0.0
        self._process = os.getpid()

    def __reduce__(self) -> tuple[type[DiskCache], tuple[Path, float]]:
        return DiskCache, (self.folder, self.max_bytes)

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: bytes) -> Arrays | None:
        """The tensors of `key`, or None if they are absent."""
        self._check_fork()
        if key not in self._places and time.monotonic() >= self._next_refresh:
            self.refresh()
        if (place := self._places.get(key)) is None:
            return None
        if (arrays := self._read(place)) is None:
            del self._places[key]
        return arrays

    def put(self, key: bytes, arrays: Arrays) -> None:
        """Appends an entry; `arrays` of more than 64 MiB or `max_bytes` are not written."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes; expected the {KEY_BYTES} bytes of digest()")
        self._check_fork()
        entry = save({name: value.detach().contiguous().clone() for name, value in arrays.items()})  # no shared memory
        if len(entry) > _MAX_ENTRY or len(entry) + _RECORD.size > self.max_bytes:
            return
        try:
            writer = self._writer_for(len(entry) + _RECORD.size)
            record = writer.append(key, entry)
        except OSError as error:
            self.close()
            self.max_bytes = 0
            lost = "they will be computed again in later runs"
            warnings.warn(f"{self.folder}: cannot write cached features ({error.strerror}); {lost}", stacklevel=2)
            return
        self._places[key] = _place(writer.number, record)
        self._shards[writer.number].records += 1

    def refresh(self) -> None:
        """Reads the records that other processes have appended, and drops the entries of shards that were removed."""
        began = time.monotonic()
        with contextlib.suppress(OSError):  # no such folder, or it cannot be listed now
            sizes = {stem: size for stem, suffix, size in self._files() if suffix == "index"}
            self._forget({number for number, shard in self._shards.items() if shard.stem not in sizes})
            known = {shard.stem: number for number, shard in self._shards.items()}
            for stem in sorted(sizes):  # the oldest first: of two entries of one key the newer counts
                number = known[stem] if stem in known else self._add(stem)
                if sizes[stem] >= (self._shards[number].records + 1) * _RECORD.size:
                    self._read_index(number)
        now = time.monotonic()
        self._next_refresh = now + (now - began) / _REFRESH_SHARE

    def close(self) -> None:
        """Closes all files. The cache may be used again."""
        while self._readers:
            self._readers.popitem()[1].close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _check_fork(self) -> None:
        """In a forked process: closes the parent's shard and its file handles, whose positions are shared."""
        if self._process != os.getpid():
            self.close()
            self._process = os.getpid()

    def _files(self) -> Iterator[tuple[str, str, int]]:
        """(stem, suffix, size) of the files of all shards."""
        with os.scandir(self.folder) as files:
            for file in files:
                if match := _SHARD_FILE.fullmatch(file.name):
                    with contextlib.suppress(OSError):  # removed by another process meanwhile
                        yield match[1], match[2], file.stat().st_size

    def _add(self, stem: str) -> int:
        self._count += 1
        self._shards[self._count] = _Shard(stem)
        return self._count

    def _read_index(self, number: int) -> None:
        """Reads the records of a shard from the first that was not read yet."""
        shard = self._shards[number]
        try:
            with FileIO(self.folder / f"{shard.stem}.index") as file:
                file.seek(shard.records * _RECORD.size)
                block = file.read(max(_MAX_RECORDS - shard.records, 0) * _RECORD.size) or b""
        except OSError:
            return
        complete = len(block) // _RECORD.size  # the last one may be partly written
        for start in range(0, complete * _RECORD.size, _RECORD.size):
            record = block[start : start + _CHECKED]
            if crc32(record) == int.from_bytes(block[start + _CHECKED : start + _RECORD.size], "little"):
                self._places[record[:KEY_BYTES]] = _place(number, record)
        shard.records += complete

    def _read(self, place: int) -> Arrays | None:
        """The entry at a place; None if it, or its shard, is gone or broken."""
        number, where = place >> _PLACE_BITS, (place & ((1 << _PLACE_BITS) - 1)).to_bytes(_PLACE_BITS // 8, "little")
        offset, length, checksum = struct.unpack("<III", where)
        if length > _MAX_ENTRY:
            return None
        try:
            file = self._reader(number)
            file.seek(offset)
            entry = file.read(length) or b""
            return load(entry) if len(entry) == length and crc32(entry) == checksum else None
        except (OSError, SafetensorError, ValueError, KeyError):
            return None

    def _reader(self, number: int) -> FileIO:
        """A shard's data file, open for reading: a shard that is removed meanwhile can be read until it is closed."""
        if number in self._readers:
            self._readers.move_to_end(number)
        else:
            self._readers[number] = FileIO(self.folder / f"{self._shards[number].stem}.data")
            if len(self._readers) > _MAX_OPEN:
                self._readers.popitem(last=False)[1].close()
        return self._readers[number]

    def _writer_for(self, size: int) -> _ShardWriter:
        """This process's shard, or a new one if it is full or was removed by another process."""
        shard_bytes = min(_MAX_SHARD, self.max_bytes / 16)
        if self._writer is not None:
            if self._writer.number in self._shards and self._writer.has_room(size, shard_bytes):
                return self._writer
            self._writer.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._make_room(max(size, shard_bytes))
        self._writer = _ShardWriter(self.folder, self._count + 1)
        self._add(self._writer.stem)
        return self._writer

    def _make_room(self, needed: float) -> None:
        """Removes the oldest shards, until `needed` bytes more fit in `max_bytes`."""
        old_files = sum(size for _, size in self._old_files())
        sizes: dict[str, int] = {}
        for stem, _, size in self._files():
            sizes[stem] = sizes.get(stem, 0) + size
        excess = old_files + sum(sizes.values()) + needed - self.max_bytes
        for path, size in self._old_files() if old_files else ():
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size
        removed = set()
        for stem in sorted(sizes):
            if excess <= 0:
                break
            for suffix in ("index", "data"):  # in this order: no process finds an index without its data
                (self.folder / f"{stem}.{suffix}").unlink(missing_ok=True)
            excess -= sizes[stem]
            removed.add(stem)
        self._forget({number for number, shard in self._shards.items() if shard.stem in removed})

    def _old_files(self) -> Iterator[tuple[Path, int]]:
        for path in self.folder.glob("??/*.seen"):
            if _OLD_FILE.fullmatch(path.name):
                with contextlib.suppress(OSError):  # removed by another process meanwhile
                    yield path, path.stat().st_size

    def _forget(self, numbers: set[int]) -> None:
        """Drops the entries of some shards from memory."""
        if not numbers:
            return
        for number in numbers:
            del self._shards[number]
            if number in self._readers:
                self._readers.pop(number).close()
        self._places = {key: place for key, place in self._places.items() if place >> _PLACE_BITS not in numbers}


def _place(number: int, record: bytes) -> int:
    """One int for the shard, offset, length and checksum of an entry, which takes less memory than a tuple of them."""
    return number << _PLACE_BITS | int.from_bytes(record[KEY_BYTES:_CHECKED], "little")


@dataclass(slots=True)
class _Shard:
    stem: str  # of its file names: the start time in nanoseconds, and the process id
    records: int = 0  # number of records of its index that this process has read or written


class _ShardWriter:
    """The two files of a shard that this process appends to."""

    def __init__(self, folder: Path, number: int):
        self.number = number
        while True:
            self.stem = f"{time.time_ns():016x}-{os.getpid()}"
            with contextlib.suppress(FileExistsError):
                self._data = FileIO(folder / f"{self.stem}.data", "x")
                break
        try:
            self._index = FileIO(folder / f"{self.stem}.index", "x")
        except OSError:
            self._data.close()
            raise

    def has_room(self, size: int, shard_bytes: float) -> bool:
        """Whether `size` bytes more fit in a shard of `shard_bytes` and other processes can still find this one."""
        index = self._index.seek(0, os.SEEK_END)
        removed = os.fstat(self._index.fileno()).st_nlink == 0
        full = self._data.seek(0, os.SEEK_END) + index + size > shard_bytes or index >= _MAX_RECORDS * _RECORD.size
        torn = index % _RECORD.size != 0  # the record before was interrupted
        return not (removed or full or torn)

    def append(self, key: bytes, entry: bytes) -> bytes:
        """Writes an entry and its record, which is returned without its checksum."""
        record = key + struct.pack("<III", self._data.seek(0, os.SEEK_END), len(entry), crc32(entry))
        _write(self._data, entry)
        _write(self._index, record + crc32(record).to_bytes(4, "little"))
        return record

    def close(self) -> None:
        self._data.close()
        self._index.close()


def _write(file: FileIO, data: bytes) -> None:
    """Writes all of `data`, in several calls if the system takes less at once. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


class MemoryCache:
    """Tensors by key in memory, up to `max_bytes` (default: SHARE), and in a `DiskCache` if there is one.

    The least recently used are removed first.
    """

    def __init__(self, max_bytes: float | None = None, disk: DiskCache | None = None):
        self.disk = disk
        self._max_bytes = self._free = SHARE * available_memory() if max_bytes is None else max_bytes
        self._entries: OrderedDict[bytes, Arrays] = OrderedDict()  # in order of last use

    def get(self, key: bytes) -> Arrays | None:
        """The tensors of `key`, or None if they are absent."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        arrays = None if self.disk is None else self.disk.get(key)
        if arrays is not None:
            self._keep(key, arrays)
        return arrays

    def put(self, key: bytes, arrays: Arrays) -> None:
        if self.disk is not None:
            self.disk.put(key, arrays)
        self._keep(key, arrays)

    def get_or_compute(self, key: bytes, compute: Callable[[], Arrays]) -> Arrays:
        """The tensors of `key`, computed if they are absent; `key` is a digest of everything that they depend on."""
        arrays = self.get(key)
        if arrays is None:
            arrays = compute()
            self.put(key, arrays)
        return arrays

    def _keep(self, key: bytes, arrays: Arrays) -> None:
        self._free += _size(self._entries.pop(key, {}))
        if (size := _size(arrays)) > self._max_bytes:
            return
        while size > self._free:
            self._free += _size(self._entries.popitem(last=False)[1])
        self._free -= size
        self._entries[key] = arrays


def _size(arrays: Arrays) -> int:
    return sum(x.nbytes for x in arrays.values())
