"""Atomic writing of files, and the error of one that cannot be written.

JSON files that Diptych wrote itself, read back: what is damaged is refused in one line that names the file.

Torch-free, since the command line reads a run's settings before anything slow is imported.
"""

from __future__ import annotations

import errno
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from diptych.utils.lock import partial_of


class WriteError(OSError):
    """A file could not be written; the message names it, the cause and what to do."""


@contextmanager
def naming_write_errors(path: Path) -> Iterator[None]:
    """Turns an OSError while `path` is written into NotWritten, with the path and what to do."""
    try:
        yield
    except WriteError:
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
        raise WriteError(
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
def atomic_write(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` once it is written and on disk; until then `path` stands. What stood
    there is kept as `keep`, where that is given. Raises NotWritten.
    """
    partial = partial_of(path)
    with naming_write_errors(path):
        try:
            usual = _mode_here(partial)
            yield partial
            partial.chmod(usual)  # safetensors' own files can be read by nobody else
            _to_disk(partial)
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(partial, path)
        finally:
            with suppress(OSError):  # the folder may be gone; the first error is the one to raise
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


Shape = Any
"""What a JSON value must be: a type or several (`str`, `(int, float)`, `type(None)` for null); ``[shape]``, a list; ``{str: shape}``,
any keys; ``{"key": shape, "other?": shape}``, an object with at least `key`. A tuple: one of these. `object`: anything. A bool is no
number.
"""
NUMBER = (int, float)
FINDING = {"step": int, "subject": str, "verdict": str, "message": str}  # one of doctor.json
SKIPPED = [{"id": int, "where": str, "why": str}]  # skipped.json, and a checkpoint's list
_MOST_NUMBER, _MOST_LEVELS = 2**63, 64
DIGEST, _MARK = "digest", "crc32:"


class DamagedFile(Exception):
    """A file that Diptych wrote cannot be used; the message names the file, the place and what to do."""


def read_json(path: Path, shape: Shape = object, advice: str = "restore the file, or remove it") -> Any:
    """The JSON value in `path`, which must have `shape`. Raises DamagedFile."""
    return parse_json(_text(path, advice), shape, str(path), advice)


def read_json_lines(
    path: Path, shape: Shape = object, advice: str = "restore the file, or remove it"
) -> Iterator[tuple[int, Any]]:
    """``(line number, value)`` of each line of a JSON Lines file, one after the other. Raises DamagedFile."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, parse_json(line, shape, f"{path}, line {number}", advice)
    except OSError as error:
        raise _unreadable(path, error) from None


def parse_json(text: str | bytes, shape: Shape, where: str, advice: str = "restore the file, or remove it") -> Any:
    """The JSON value in `text`, which must have `shape`. Raises DamagedFile that begins with `where`."""
    try:
        value = json.loads(text.decode() if isinstance(text, bytes) else text)
        if why := "nested too deeply" if _deep(value) else shape_error(value, shape):
            raise DamagedFile(f"{where}: {why}; {advice}")
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else "empty" if not text.strip() else f"{error}"
        raise DamagedFile(f"{where}: not the JSON that was written there ({why}); {advice}") from None
    return value


def with_digest(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` and, as its last key, a CRC-32 of all the others, which `check_digest` compares."""
    return {**record, DIGEST: _digest(record)}


def check_digest(path: Path, record: Mapping[str, Any]) -> None:
    """Compares a record with its digest, known by its key and by the mark that it begins with: no single flipped bit hides it.
    A record without one, as older versions and people write, is taken as it is. Raises DamagedFile.
    """
    carried = [value for key, value in record.items() if key == DIGEST or str(value).startswith(_MARK)]
    if carried and carried != [_digest({key: value for key, value in record.items() if key != DIGEST})]:
        raise DamagedFile(
            f"{path}: its content does not match its digest: restore the file, or, if it was changed on purpose, remove "
            f'"{DIGEST}" from it'
        )


def _digest(record: Mapping[str, Any]) -> str:
    plain = json.dumps(json.loads(json.dumps(record)), sort_keys=True)
    return f"{_MARK}{zlib.crc32(plain.encode()):08x}"


def shape_error(value: Any, shape: Shape, at: str = "") -> str:
    """Why a JSON value does not have a shape, by the first key where it does not; "" where it does."""
    here = f"{at or 'the whole'} is"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{here} {_kind(value)}, not a list"
        parts = ((f"{at}[{i}]", part, shape[0]) for i, part in enumerate(value))
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{here} {_kind(value)}, not an object"
        every = shape.get(str, object)
        needed = (key for key in shape if isinstance(key, str) and not key.endswith("?"))
        if missing := [key for key in needed if key not in value]:
            return f"{at or 'the object'} lacks {missing[0]!r}"
        kinds = {key: shape.get(key, shape.get(f"{key}?", every)) for key in value}
        parts = ((f"{at}.{key}".lstrip("."), part, kinds[key]) for key, part in value.items())
    elif isinstance(shape, tuple) and not all(isinstance(kind, type) for kind in shape):
        whys = [shape_error(value, kind, at) for kind in shape]
        return "" if "" in whys else whys[0]
    else:
        return _no_such(value, shape if isinstance(shape, tuple) else (shape,), here)
    return next((why for name, part, kind in parts if (why := shape_error(part, kind, name))), "")


def _no_such(value: Any, kinds: tuple[type, ...], here: str) -> str:
    """Why a value is of none of some types; "" where it is of one."""
    if object in kinds:
        return ""
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        return f"{here} {_kind(value)}, not {' or '.join(map(_name, kinds))}"
    big = isinstance(value, int) and abs(value) >= _MOST_NUMBER
    return f"{here} a number of more than 64 bits" if big else ""


def _deep(value: Any) -> bool:
    """Whether there are lists and objects within each other beyond all use."""
    level = [value]
    for _ in range(_MOST_LEVELS):
        level = [
            part
            for one in level
            if isinstance(one, dict | list)
            for part in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
}
_NAMES |= {type(None): "null"}


def _kind(value: Any) -> str:
    return _name(type(value))


def _name(kind: type) -> str:
    return _NAMES.get(kind, kind.__name__)


def _unreadable(path: Path, error: OSError) -> DamagedFile:
    return DamagedFile(f"{path}: cannot be read ({error.strerror}); check the file and its folder")


def _text(path: Path, advice: str) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise _unreadable(path, error) from None
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path}: byte {error.start} is not UTF-8; {advice}") from None
