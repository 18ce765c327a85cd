"""One writer at a time: a folder that something is written into is locked until its writer ends, however it ends.

The lock is POSIX's (`fcntl.lockf`): the kernel releases it when its owner dies, and forked data workers do not inherit it. It
holds between machines too where the file system has locks (NFS 4 has; where a file system has none, that is said, and the
user must see to it). A process loses such a lock when it closes *any* handle of the file, so the file is opened only here,
and a process that holds a folder enters it again without opening it twice. Elsewhere than on POSIX there is no lock.
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
_WITHOUT = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # a file system that has no locks
_held: dict[Path, int] = {}  # what this process has locked, and by which of its threads


class InUse(Exception):
    """Another process writes into the folder; the message names it, and what to do."""


@contextmanager
def locked(folder: Path, file: str = "") -> Iterator[bool]:
    """Holds a folder, made where there is none, or one `file` that is to be written in it; removes what writers that died have
    left half written. Gives whether it was taken here, not already before by the same thread. Raises InUse.
    """
    name, place = (f".{file}{LOCK}", folder / file) if file else (LOCK, folder)
    key = folder.resolve() / name
    if _held.get(key) == threading.get_ident():
        yield False
        return
    if key in _held:
        raise InUse(f"{place} is being written by this process ({os.getpid()}) already: give another --out")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    handle = _take(folder / name, place)
    _held[key] = threading.get_ident()
    try:
        for path in folder.glob(f"{escape(file)}.*partial") if file else _halves(folder):
            _remove_dead(path)
        yield True
    finally:
        del _held[key]
        with contextlib.suppress(OSError):  # the folder may be gone
            (folder / name).unlink()
        os.close(handle)
        with contextlib.suppress(OSError):  # what was made for a run that then wrote nothing
            for path in made:
                path.rmdir()


def single_writer(write: Callable[P, T]) -> Callable[P, T]:
    """`write`, whose argument `out` is the folder that it writes into, made to hold it (`locked`) from begin to end."""
    signature = inspect.signature(write)

    @functools.wraps(write)
    def held(*args: P.args, **kwargs: P.kwargs) -> T:
        with locked(signature.bind(*args, **kwargs).arguments["out"]):
            return write(*args, **kwargs)

    return held


def _take(file: Path, place: Path) -> int:
    """A handle of the locked file. One that its owner removed as it ended is another file by then: it is tried again."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)  # its owner may have removed that too
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _WITHOUT:
                owner = os.read(handle, 100).decode(errors="replace").strip()
                os.close(handle)
                raise InUse(
                    f"{place} is being written by another process ({owner or 'just begun'}): let it end, or give another --out"
                ) from None
            echo(f"{place}: this file system has no locks; start nothing else that writes there")
        try:
            same = os.stat(file).st_ino == os.fstat(handle).st_ino
        except FileNotFoundError:
            same = False
        if same:
            with contextlib.suppress(
                OSError
            ):  # on a full disk the folder is held all the same, by a lock without a name
                os.ftruncate(handle, 0)
                os.write(handle, f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
            return handle
        os.close(handle)


def partial_of(path: Path) -> Path:
    """What a file is called while this process writes it."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def _halves(folder: Path) -> Iterator[Path]:
    yield from folder.glob("*.partial")
    yield from folder.glob("parts/*.partial")  # bootstrap's


def _remove_dead(path: Path) -> None:
    """Removes what a process that is no more has left half written."""
    match = _PARTIAL.fullmatch(path.name)
    if match is None or not _alive(int(match[1])):
        path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if os.name != "posix":  # there a signal 0 would end it
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return pid != os.getpid()
