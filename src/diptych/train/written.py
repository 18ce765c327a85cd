"""Files that are there whole or not at all, and what is said where one cannot be written."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from diptych.train.lock import partial_of


class NotWritten(OSError):
    """A file could not be written; the message says which, why, and what to do."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong while `path` is written, told with the path and what to do. Raises NotWritten."""
    try:
        yield
    except NotWritten:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        code = error.errno if isinstance(error, OSError) else _code(str(error))
        named = getattr(error, "filename", None)
        read = named is not None and Path(os.fsdecode(named)).parent not in (
            path.parent,
            path,
        )  # something else, meanwhile
        if code is None or read:
            raise
        raise NotWritten(
            f"{path} cannot be written ({os.strerror(code)}): {remedy(code)}, then give the same command again; what was written "
            "before stands"
        ) from error


def remedy(code: int) -> str:
    """What a user can do about one of the system's errors."""
    return _WHAT_TO_DO.get(code, "mend that")


_WHAT_TO_DO = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "the file system is read-only: make it writable or give another --out",
    errno.EACCES: "see to its permissions or give another path",
    errno.EPERM: "see to its permissions or give another path",
    errno.ENOENT: "it, or its folder, is not there: put it back or give another path",
    errno.ENOTDIR: "a part of its path is a file: give another --out",
    errno.EISDIR: "a folder has that name: give another --out",
}


def _code(message: str) -> int | None:
    """The system's error number in what safetensors ("… (os error 28)") and torch.save say ("…: file write failed")."""
    found = _IN_MESSAGE.search(message)
    return None if found is None else int(found[1]) if found[1] else errno.ENOSPC


_IN_MESSAGE = re.compile(
    r"\(os error (\d+)\)|PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+|iostream error"
)


@contextmanager
def written_whole(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` once it is written and on disk; until then `path` stands. What stood
    there is kept as `keep`, where that is given. Raises NotWritten.
    """
    partial = partial_of(path)
    with writing(path):
        try:
            usual = _mode_here(partial)
            yield partial
            partial.chmod(usual)  # safetensors' own files can be read by nobody else
            _to_disk(partial)
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(partial, path)
        finally:
            with suppress(OSError):  # the folder may be gone; what went wrong first is what is told
                partial.unlink(missing_ok=True)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            _to_disk(path.parent)


def _mode_here(path: Path) -> int:
    """The mode of a new file, as the user and the folder want it; what a stopped run left at `path` may have another."""
    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode
    path.unlink()
    return mode


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
