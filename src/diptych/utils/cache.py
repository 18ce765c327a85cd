"""What was computed once and is dear to compute again: tensors by a digest of what they were made from, in memory and,
where a folder is named, on disk for other processes and later runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
import zlib
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

Arrays = dict[str, Tensor]
_FILE = re.compile(r"[0-9a-f]{40}\.seen")
_MAGIC = b"diptych1"
_GIVEN = Path("/sys/fs/cgroup/memory.max")
_MOST_ENTRY = 64 * 2**20  # bytes of one file


def digest(*parts: bytes | str | Tensor) -> bytes:
    """A name of 20 bytes for some values: of tensors the shape and type count too."""
    made = blake2b(digest_size=20)
    for part in parts:
        if isinstance(part, Tensor):
            made.update(f"{tuple(part.shape)} {part.dtype} ".encode())
            part = part.cpu().contiguous().numpy().tobytes()
        data = part.encode() if isinstance(part, str) else part
        made.update(f"{len(data)} ".encode() + data)
    return made.digest()


def default_folder() -> Path:
    """Where a machine keeps what was seen: $DIPTYCH_CACHE, or diptych/ in the user's cache folder.

    Raises ValueError where neither the environment nor the system names a home folder.
    """
    if told := os.environ.get("DIPTYCH_CACHE"):
        return Path(told)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diptych"
    except RuntimeError:
        raise ValueError("this user has no home folder to keep features in; set DIPTYCH_CACHE to a folder") from None


class Store:
    """One file for each name in `folder`: safetensors behind a checksum. Any number of processes may use it at once.

    A file appears whole or not at all; one that is broken or another's is as if it were not there, and is written anew.
    When all would be more than `most_bytes`, the oldest go. Where nothing can be written, that is said once.
    """

    def __init__(self, folder: Path, most_bytes: float = 8e9):
        self.folder, self.most_bytes = folder, most_bytes
        self._size: float | None = None  # what lies there, as far as this process knows

    def get(self, name: bytes) -> Arrays | None:
        try:
            with self._file(name).open("rb") as file:
                data = file.read(_MOST_ENTRY + 1)
            head, body = data[: len(_MAGIC) + 4], data[len(_MAGIC) + 4 :]
            whole = len(data) <= _MOST_ENTRY and head == _MAGIC + zlib.crc32(body).to_bytes(4, "little")
            return load(body) if whole else None
        except (OSError, SafetensorError, ValueError, KeyError):
            return None

    def put(self, name: bytes, arrays: Arrays) -> None:
        body = save({key: value.contiguous() for key, value in arrays.items()})
        data = _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body
        file = self._file(name)
        if len(data) > min(_MOST_ENTRY, self.most_bytes):
            return
        try:
            self._make_room(len(data))
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}")
            part.write_bytes(data)
            part.replace(file)
        except OSError as error:
            warnings.warn(f"{self.folder}: nothing is kept there ({error.strerror})", stacklevel=2)
            self.most_bytes = 0

    def _file(self, name: bytes) -> Path:
        written = name.hex()
        return self.folder / written[:2] / f"{written}.seen"

    def _make_room(self, size: int) -> None:
        """Looks what lies there only at first and when it may be too much; then a quarter goes, the oldest first."""
        if self._size is not None and self._size + size <= self.most_bytes:
            self._size += size
            return
        found = []
        for file in self.folder.glob("??/*"):
            with contextlib.suppress(OSError):  # another process was quicker
                if _FILE.fullmatch(file.name):
                    told = file.stat()
                    found.append((told.st_mtime_ns, told.st_size, file))
        total = sum(length for _, length, _ in found) + size
        goal = self.most_bytes if total <= self.most_bytes else 0.75 * self.most_bytes
        for _, length, file in sorted(found):
            if total <= goal:
                break
            file.unlink(missing_ok=True)
            total -= length
        self._size = total


SHARE = 1 / 16
"""Of the memory that this process may have: what one `Remembered` holds at most. There are three (pictures, what a CNN and
MiniLM make of them and of texts), and as many in each data worker.
"""


def memory() -> float:
    """The memory that this process may have, in bytes: the machine's, or what its container is given of it."""
    try:
        whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # a system that does not tell
        whole = 8e9
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        whole = min(whole, float(_GIVEN.read_text()))
    return whole


class Remembered:
    """Tensors by name, in memory up to `most_bytes` (see SHARE), and in a `store`. What was not asked for longest goes first,
    and is made, or read, anew.
    """

    def __init__(self, most_bytes: float | None = None, store: Store | None = None):
        self.store = store
        self._most = self._left = SHARE * memory() if most_bytes is None else most_bytes
        self._kept: dict[bytes, Arrays] = {}  # the last used last

    def get(self, name: bytes) -> Arrays | None:
        if name in self._kept:
            self._kept[name] = found = self._kept.pop(name)
            return found
        found = None if self.store is None else self.store.get(name)
        if found is not None:
            self._keep(name, found)
        return found

    def put(self, name: bytes, made: Arrays) -> None:
        if self.store is not None:
            self.store.put(name, made)
        self._keep(name, made)

    def of(self, name: bytes, make: Callable[[], Arrays]) -> Arrays:
        """What `make` gives, or gave once; `name` is a digest of all that it depends on."""
        found = self.get(name)
        if found is None:
            found = make()
            self.put(name, found)
        return found

    def _keep(self, name: bytes, arrays: Arrays) -> None:
        self._left += _size(self._kept.pop(name, {}))
        if (size := _size(arrays)) > self._most:
            return
        while size > self._left:
            self._left += _size(self._kept.pop(next(iter(self._kept))))
        self._left -= size
        self._kept[name] = arrays


def _size(arrays: Arrays) -> int:
    return sum(x.nbytes for x in arrays.values())
