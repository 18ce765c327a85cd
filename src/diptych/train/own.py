"""JSON files that Diptych wrote itself, read back: what is damaged is refused in one line that names the file.

Torch-free, since the command line reads a run's settings before anything slow is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Shape = Any
"""What a JSON value must be: a type or several (`str`, `(int, float)`, `type(None)` for null); ``[shape]``, a list; ``{str: shape}``,
any keys; ``{"key": shape, "other?": shape}``, an object with at least `key`. A tuple: one of these. `object`: anything. A bool is no
number.
"""
NUMBER = (int, float)
FINDING = {"step": int, "subject": str, "verdict": str, "message": str}  # one of doctor.json
SKIPPED = [{"id": int, "where": str, "why": str}]  # skipped.json, and a checkpoint's list
_MOST_NUMBER, _MOST_LEVELS = 2**63, 64


class DamagedFile(Exception):
    """A file that Diptych wrote cannot be used; the message says which, where, and what to do."""


def read_own(path: Path, shape: Shape = object, advice: str = "restore the file, or remove it") -> Any:
    """The JSON value in `path`, which must have `shape`. Raises DamagedFile."""
    return parse_own(_text(path, advice), shape, str(path), advice)


def read_own_lines(
    path: Path, shape: Shape = object, advice: str = "restore the file, or remove it"
) -> Iterator[tuple[int, Any]]:
    """``(line number, value)`` of each line of a JSON Lines file, one after the other. Raises DamagedFile."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, parse_own(line, shape, f"{path}, line {number}", advice)
    except OSError as error:
        raise _unreadable(path, error) from None


def parse_own(text: str | bytes, shape: Shape, where: str, advice: str = "restore the file, or remove it") -> Any:
    """The JSON value in `text`, which must have `shape`. Raises DamagedFile that begins with `where`."""
    try:
        value = json.loads(text.decode() if isinstance(text, bytes) else text)
        if why := "nested too deeply" if _deep(value) else misshapen(value, shape):
            raise DamagedFile(f"{where}: {why}; {advice}")
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else "empty" if not text.strip() else f"{error}"
        raise DamagedFile(f"{where}: not the JSON that was written there ({why}); {advice}") from None
    return value


def misshapen(value: Any, shape: Shape, at: str = "") -> str:
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
        whys = [misshapen(value, kind, at) for kind in shape]
        return "" if "" in whys else whys[0]
    else:
        return _no_such(value, shape if isinstance(shape, tuple) else (shape,), here)
    return next((why for name, part, kind in parts if (why := misshapen(part, kind, name))), "")


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
