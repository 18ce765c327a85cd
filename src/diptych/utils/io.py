"""Atomic writing of files, and checked reading of Diptych's own JSON files; errors are one line that names the file.

Does not import torch, since the command line reads a run's settings before any slow import.
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
    """A file could not be written; the message names the file, the cause and what to do."""


@contextmanager
def naming_write_errors(path: Path) -> Iterator[None]:
    """Turns an OSError while `path` is written into a WriteError with the path and what to do."""
    try:
        yield
    except WriteError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        code = error.errno if isinstance(error, OSError) else _code(str(error))
        filename = getattr(error, "filename", None)
        other_file = filename is not None and Path(os.fsdecode(filename)).parent not in (path.parent, path)
        if code is None or other_file:
            raise
        raise WriteError(
            f"{path} cannot be written ({os.strerror(code)}): {remedy(code)}, then give the same command again; "
            "earlier files are unchanged"
        ) from error


def remedy(code: int) -> str:
    """What a user can do about an error number of the operating system."""
    return _REMEDIES.get(code, "correct that")


_REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "the file system is read-only: make it writable or give another --out",
    errno.EACCES: "check its permissions or give another path",
    errno.EPERM: "check its permissions or give another path",
    errno.ENOENT: "it, or its folder, does not exist: restore it or give another path",
    errno.ENOTDIR: "a part of its path is a file: give another --out",
    errno.EISDIR: "it is a folder: give another --out",
}


def _code(message: str) -> int | None:
    """The error number in a message of safetensors ("… (os error 28)") or torch.save ("…: file write failed")."""
    match = _IN_MESSAGE.search(message)
    return None if match is None else int(match[1]) if match[1] else errno.ENOSPC


_IN_MESSAGE = re.compile(
    r"\(os error (\d+)\)|PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+|iostream error"
)


@contextmanager
def atomic_write(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """A temporary path to write to, which replaces `path` once it is complete and on disk.

    Args:
        keep: where the previous file at `path` is moved to; None deletes it.

    Raises:
        WriteError: the file cannot be written; `path` is unchanged.
    """
    partial = partial_of(path)
    with naming_write_errors(path):
        try:
            mode = _default_mode(partial)
            yield partial
            partial.chmod(mode)  # safetensors makes files that only their owner can read
            _sync(partial)
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(partial, path)
        finally:
            with suppress(OSError):  # the folder may be gone; the first error is the one to raise
                partial.unlink(missing_ok=True)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            _sync(path.parent)


def _default_mode(path: Path) -> int:
    """The mode of a new file at `path`; a file that a stopped run left there, perhaps with another mode, is removed."""
    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode
    path.unlink()
    return mode


def _sync(path: Path) -> None:
    """Waits until a file or folder is on disk."""
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


Schema = Any
"""The expected form of a JSON value.

A type or several: `str`, `(int, float)`, `type(None)` for null; a bool is not a number. ``[schema]``: a list.
``{str: schema}``: an object with any keys. ``{"key": schema, "other?": schema}``: an object with at least `key`. A
tuple: one of several schemas. `object`: any value.
"""
NUMBER = (int, float)
FINDING_SCHEMA = {"step": int, "subject": str, "verdict": str, "message": str}  # an entry of diagnostics.json
SKIPPED_SCHEMA = [{"id": int, "where": str, "why": str}]  # skipped.json, and the list in a checkpoint
_MAX_NUMBER, _MAX_LEVELS = 2**63, 64
DIGEST, _PREFIX = "digest", "crc32:"


class DamagedFile(Exception):
    """A file that Diptych wrote cannot be used; the message names the file, the location in it, and what to do."""


def read_json(path: Path, schema: Schema = object, advice: str = "restore the file, or remove it") -> Any:
    """The JSON value in a file, which must match `schema`. Raises DamagedFile, whose message ends with `advice`."""
    return parse_json(_text(path, advice), schema, str(path), advice)


def read_json_lines(
    path: Path, schema: Schema = object, advice: str = "restore the file, or remove it"
) -> Iterator[tuple[int, Any]]:
    """Yields ``(line number, value)`` for each line of a JSON Lines file that is not blank. Raises DamagedFile."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, parse_json(line, schema, f"{path}, line {number}", advice)
    except OSError as error:
        raise _unreadable(path, error) from None


class InvalidJSON(ValueError):
    """A text is not JSON, or nested too deeply; `line` and `column` count from 1, `column` is 0 where it is unknown."""

    def __init__(self, why: str, line: int = 1, column: int = 0):
        super().__init__(why)
        self.line, self.column = line, column


def decode_json(text: str | bytes) -> Any:
    """The value of a JSON text (UTF-8 if it is bytes). Raises InvalidJSON."""
    try:
        value = json.loads(text.decode() if isinstance(text, bytes) else text)
    except json.JSONDecodeError as error:
        raise InvalidJSON(error.msg if text.strip() else "empty", error.lineno, error.colno) from None
    except RecursionError:
        raise InvalidJSON("nested too deeply") from None
    except ValueError as error:  # not UTF-8; an integer of thousands of digits
        raise InvalidJSON(str(error)) from None
    return value


def parse_json(text: str | bytes, schema: Schema, where: str, advice: str = "restore the file, or remove it") -> Any:
    """The JSON value in `text`, which must match `schema`. Raises DamagedFile, whose message begins with `where`."""
    try:
        value = decode_json(text)
    except InvalidJSON as error:
        at = f" at line {error.line}, column {error.column}" if error.column else ""
        raise DamagedFile(f"{where}: not the JSON that was written there ({error}{at}); {advice}") from None
    if why := "nested too deeply" if _deep(value) else schema_error(value, schema):
        raise DamagedFile(f"{where}: {why}; {advice}")
    return value


def with_digest(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` with a CRC-32 of all its keys and values as the last key, for `check_digest`."""
    return {**record, DIGEST: _digest(record)}


def check_digest(path: Path, record: Mapping[str, Any]) -> None:
    """Raises DamagedFile unless a record matches its digest.

    The digest is recognised both by its key and by the prefix of its value, so that no single flipped bit hides it. A
    record without one, as older versions and people write them, is not checked.
    """
    digests = [value for key, value in record.items() if key == DIGEST or str(value).startswith(_PREFIX)]
    if digests and digests != [_digest({key: value for key, value in record.items() if key != DIGEST})]:
        raise DamagedFile(
            f"{path}: its content does not match its digest: restore the file, or, if it was changed on purpose, "
            f'remove "{DIGEST}" from it'
        )


def _digest(record: Mapping[str, Any]) -> str:
    text = json.dumps(json.loads(json.dumps(record)), sort_keys=True)
    return f"{_PREFIX}{zlib.crc32(text.encode()):08x}"


def schema_error(value: Any, schema: Schema, at: str = "") -> str:
    """Why a JSON value does not match a schema, at the first key that differs; "" if it matches."""
    here = f"{at or 'the value'} is"
    if isinstance(schema, list):
        if not isinstance(value, list):
            return f"{here} {_kind(value)}, not a list"
        parts = ((f"{at}[{i}]", part, schema[0]) for i, part in enumerate(value))
    elif isinstance(schema, dict):
        if not isinstance(value, dict):
            return f"{here} {_kind(value)}, not an object"
        default = schema.get(str, object)
        required = (key for key in schema if isinstance(key, str) and not key.endswith("?"))
        if missing := [key for key in required if key not in value]:
            return f"{at or 'the object'} lacks {missing[0]!r}"
        kinds = {key: schema.get(key, schema.get(f"{key}?", default)) for key in value}
        parts = ((f"{at}.{key}".lstrip("."), part, kinds[key]) for key, part in value.items())
    elif isinstance(schema, tuple) and not all(isinstance(kind, type) for kind in schema):
        errors = [schema_error(value, kind, at) for kind in schema]
        return "" if "" in errors else errors[0]
    else:
        return _type_error(value, schema if isinstance(schema, tuple) else (schema,), here)
    return next((error for name, part, kind in parts if (error := schema_error(part, kind, name))), "")


def _type_error(value: Any, kinds: tuple[type, ...], here: str) -> str:
    """Why a value is of none of some types; "" if it is of one."""
    if object in kinds:
        return ""
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        return f"{here} {_kind(value)}, not {' or '.join(map(_name, kinds))}"
    too_large = isinstance(value, int) and abs(value) >= _MAX_NUMBER
    return f"{here} a number of more than 64 bits" if too_large else ""


def _deep(value: Any) -> bool:
    """Whether lists and objects are nested more than 64 levels deep."""
    level = [value]
    for _ in range(_MAX_LEVELS):
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
