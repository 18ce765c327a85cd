"""Locks on output folders: one writer at a time, until its process ends, however it ends.

The lock is POSIX's (`fcntl.lockf`): the kernel releases it when its owner dies, and forked data workers do not
inherit it. It works between machines too if the file system has locks (NFS 4 does); without them, a message says so,
and the user must ensure it. A process loses such a lock when it closes *any* handle of the file, so the file is
opened only here, and a process that has locked a folder enters it again without opening the file twice. Systems other
than POSIX have no lock.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import ParamSpec, TypeVar

from diptych.utils.terminal import echo

P = ParamSpec("P")
T = TypeVar("T")

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
_PARTIAL = re.compile(r".*\.(\d+)\.partial")
_NO_LOCK_ERRORS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # of a file system without locks
_held: dict[Path, int] = {}  # lock file → the thread of this process that holds it


class InUse(Exception):
    """Another process writes into the folder; the message names the process, and what to do."""


@contextmanager
def locked(folder: Path, file: str = "") -> Iterator[bool]:
    """Locks a folder, which is created if needed, or one `file` in it; removes partial files of writers that died.

    Yields:
        Whether the lock was acquired here; False if the same thread has it already.

    Raises:
        InUse: another process, or another thread, writes there.
    """
    name, target = (f".{file}{LOCK}", folder / file) if file else (LOCK, folder)
    key = folder.resolve() / name
    if _held.get(key) == threading.get_ident():
        yield False
        return
    if key in _held:
        raise InUse(f"{target} is being written by this process ({os.getpid()}) already: give another --out")
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    handle = _acquire(folder / name, target)
    _held[key] = threading.get_ident()
    try:
        for path in folder.glob(f"{escape(file)}.*partial") if file else _partial_files(folder):
            _remove_abandoned(path)
        yield True
    finally:
        del _held[key]
        with contextlib.suppress(OSError):  # the folder may be gone
            (folder / name).unlink()
        os.close(handle)
        with contextlib.suppress(OSError):  # folders of a run that wrote nothing; others are not empty
            for path in created:
                path.rmdir()


def single_writer(write: Callable[P, T]) -> Callable[P, T]:
    """A decorator that locks (`locked`) the folder in the argument `out` of a function while it runs."""
    signature = inspect.signature(write)

    @functools.wraps(write)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        with locked(signature.bind(*args, **kwargs).arguments["out"]):
            return write(*args, **kwargs)

    return wrapper


def _acquire(file: Path, target: Path) -> int:
    """The handle of the lock file `file`, locked. Raises InUse, naming `target`.

    If another owner removed the file between opening and locking it, the handle is of a deleted file: it tries again.
    """
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)  # another owner may have removed the folder too
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCK_ERRORS:
                owner = os.read(handle, 100).decode(errors="replace").strip()
                os.close(handle)
                raise InUse(
                    f"{target} is being written by another process ({owner or 'just begun'}): "
                    "let it end, or give another --out"
                ) from None
            echo(f"{target}: this file system has no locks; start no other process that writes there")
        try:
            same = os.stat(file).st_ino == os.fstat(handle).st_ino
        except FileNotFoundError:
            same = False
        if same:
            with contextlib.suppress(OSError):  # on a full disk, the lock works without its owner's name
                os.ftruncate(handle, 0)
                os.write(handle, f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
            return handle
        os.close(handle)


def partial_of(path: Path) -> Path:
    """The path of a file while this process writes it."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def _partial_files(folder: Path) -> Iterator[Path]:
    yield from folder.glob("*.partial")
    yield from folder.glob("parts/*.partial")  # of capfilt


def _remove_abandoned(path: Path) -> None:
    """Removes a partial file unless the process that writes it is alive."""
    match = _PARTIAL.fullmatch(path.name)
    if match is None or not _alive(int(match[1])):
        path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if os.name != "posix":  # signal 0 would end the process on Windows
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # a process of another user
        return True
    return pid != os.getpid()
