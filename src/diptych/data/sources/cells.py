"""Parsing of texts in the cells of data files, rejecting values that a program printed.

A cell may also contain a list: as JSON in a .json or .jsonl file, or as a JSON list in one cell of a CSV file. A cell
that looks like a list, record, bytes or missing value printed by Python (``['a', 'b']``, ``{'answer': 'a'}``, ``b'a'``,
``nan``) is rejected, because it is ambiguous whether it was meant as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from diptych.config.validation import preview
from diptych.data.sources.base import DataError
from diptych.data.sources.paths import MAX_FILE_BYTES, kind_of, need

_PRINTED = re.compile(
    r"""
      \[\s*\] | \{\s*\}                                               # empty brackets
    | [\[{]\s*[bu]?['"\[{].*[\]}]                                     # ['a', 'b']  {"answer": "a"}  [['a']]
    | [\[{][\s.,:+-]*\d[\s\d.,:+-]*[\]}]                              # [1, 2]  {1: 2}
    | [\[{(]\s*(?:None|True|False|nan|null|true|false)\s*(?:,.*)?[\]})]
    | \(\s*[bu]?['"].*['"]\s*,\s*\) | \(\s*[bu]?['"].*['"]\s*,.*\)      # ('a',)  ('a', 'b')
    | (?:array|set|frozenset|dict|list|tuple|Counter|OrderedDict|defaultdict|np\.\w+)\(.*\)
    | [bu]'.*' | [bu]".*"                                             # b'a'
    """,
    re.VERBOSE | re.DOTALL,
)
_BRACKETED = re.compile(r"\[.*\]|\{.*\}", re.DOTALL)
_MISSING = ("nan", "NaN", "<NA>")  # as a whole cell; within a list each may be a person's answer
_ADVICE = 'write the answer as a text, or several as a JSON list ["a", "b"]'


def text(row: Any, key: str, where: str) -> str:
    """``row[key]``, a string that is not a printed value. Raises DataError."""
    return _single(need(row, key, str, where), f"{where}, {key!r}")


def optional_text(row: dict[str, Any], key: str, where: str) -> str:
    """``row[key]``, a string; "" if the key is missing or null. Raises DataError for any other value."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}, {key!r}: expected a text, got {kind_of(value)}; write a text or leave the key out")
    return value or ""


def captions(row: Any, key: str, where: str) -> tuple[str, ...]:
    """Captions in ``row[key]``: a string, or a list of strings. Raises DataError for anything else."""
    value, where = need(row, key, (str, list), where), f"{where}, {key!r}"
    if isinstance(value, str):
        return captions_in_text(value, where)
    return tuple(_string(item, f"{where}, [{i}]") for i, item in enumerate(value))


def captions_in_text(value: str, where: str) -> tuple[str, ...]:
    """Captions in one string: itself, or the strings of a JSON list. Raises DataError."""
    items = _json(value) if _PRINTED.fullmatch(value.strip()) else None
    if isinstance(items, list):
        return tuple(_string(item, f"{where}, [{i}]") for i, item in enumerate(items))
    return (_single(value, where),)


def answers(row: Any, key: str, where: str) -> tuple[str, ...]:
    """Answers in ``row[key]``: one or a list, each a string, an integer, or a record ``{"answer": ...}`` (VQA v2,
    VizWiz).

    An empty list means that the answers are withheld. Raises DataError for anything else, also if all are empty.
    """
    _present(row, key, where)
    value, where = row[key], f"{where}, {key!r}"
    if isinstance(value, str) and _BRACKETED.fullmatch(value.strip()):
        value = _json(value)
        if not isinstance(value, list | dict):
            raise DataError(f"{where}: {preview(row[key])} is not a JSON list; {_ADVICE}")
    if isinstance(value, list):
        result = tuple(_answer(item, f"{where}, [{i}]") for i, item in enumerate(value))
    else:
        result = (_answer(value, where),)
    if result in [(word,) for word in _MISSING] and not isinstance(value, list):
        raise DataError(f"{where}: {value!r} stands for a missing value; {_ADVICE}, or drop the row")
    if result and not any(answer.strip() for answer in result):
        raise DataError(f"{where}: an empty answer; {_ADVICE}, or drop the row")
    return result


def _answer(value: Any, where: str) -> str:
    if isinstance(value, dict):
        _present(value, "answer", where)
        value, where = value["answer"], f"{where}, 'answer'"
    if type(value) is int and abs(value) < MAX_FILE_BYTES:
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{where}: expected an answer, got {kind_of(value)}; {_ADVICE}, or drop the row")
    return _plain(value, where)


def _present(row: Any, key: str, where: str) -> None:
    """Raises DataError unless `row` is a record with that key."""
    if not isinstance(row, dict) or key not in row:
        need(row, key, object, where)


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: expected a caption, got {kind_of(value)}; write it as a text")
    return _plain(value, where)


def _plain(value: str, where: str) -> str:
    if _PRINTED.fullmatch(value.strip()):
        raise DataError(
            f"{where}: {preview(value)} looks like a printed value of a program; write a text, or a JSON list of texts"
        )
    return value


def _single(value: str, where: str) -> str:
    """The text of a cell. Raises DataError for a printed missing value."""
    if value.strip() in (*_MISSING, "None"):
        raise DataError(f"{where}: {value!r} stands for a missing value; write a text, or drop the row")
    return _plain(value, where)


def _json(value: str) -> Any:
    """The value of a JSON text; None if it is not JSON."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def texts(row: Any, key: str, where: str) -> tuple[str, ...]:
    """``row[key]``: a string, or a list of strings. Raises DataError for anything else."""
    return captions(row, key, where)


def box(row: Any, keys: Sequence[str], where: str) -> tuple[float, float, float, float]:
    """The box x1, y1, x2, y2 in one cell or in four, of several boxes the smallest that contains them all.

    A cell has four numbers as a list, or as text separated by blanks or commas, or a list of such lists. Whether the
    box lies in its image is checked when the image is read.

    Source: Rohrbach et al., ECCV 2016, section 4: phrases of Flickr30k Entities with several boxes.

    Raises DataError.
    """
    if len(keys) > 1:
        return corners([row[key] for key in keys], f"{where}, {', '.join(map(repr, keys))}")
    _present(row, keys[0], where)
    value, where = row[keys[0]], f"{where}, {keys[0]!r}"
    if isinstance(value, str):
        value = _json(value) if value.lstrip().startswith("[") else value.replace(",", " ").split()
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        x1, y1, x2, y2 = zip(*(corners(item, f"{where}, [{i}]") for i, item in enumerate(value)), strict=True)
        return min(x1), min(y1), max(x2), max(y2)
    return corners(value, where)


def corners(value: Any, where: str) -> tuple[float, float, float, float]:
    """Four numbers, each a number or its text. Raises DataError."""
    try:
        numbers = [float(item) for item in value if not isinstance(item, bool)]
        if len(numbers) == len(value) == 4:
            return numbers[0], numbers[1], numbers[2], numbers[3]
    except (TypeError, ValueError, OverflowError):
        pass
    raise DataError(f"{where}: expected a box, the four numbers x1 y1 x2 y2 in pixels, got {preview(value)}")
