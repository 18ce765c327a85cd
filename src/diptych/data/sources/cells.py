"""Texts in the cells of data files: strings as they stand there, never the text that Python prints for another value.

A cell may also hold a list: as JSON in a .json or .jsonl file, or as the JSON of a list in one cell of a CSV file. What looks
like a list, record, bytes or missing value as Python prints it (``['a', 'b']``, ``{'answer': 'a'}``, ``b'a'``, ``nan``) is
refused: nobody can tell whether it was meant as a text.
"""

from __future__ import annotations

import json
import re
from typing import Any

from diptych.data.sources.base import DataError
from diptych.data.sources.paths import LARGEST, kind_of, need

_PRINTED = re.compile(
    r"""
      \[\s*\] | \{\s*\}                                               # nothing in brackets
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
_MISSING = ("nan", "NaN", "<NA>")  # alone in a cell; as one of a list each is what a person answered
_ADVICE = 'write the answer as a text, or several as a JSON list ["a", "b"]'


def text(row: Any, key: str, where: str) -> str:
    """``row[key]``, a string that is no printed value. Raises DataError."""
    return _whole(need(row, key, str, where), f"{where}, {key!r}")


def optional_text(row: dict[str, Any], key: str, where: str) -> str:
    """``row[key]``, a string; "" where the key is missing or null. Raises DataError for any other value."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(
            f"{where}, {key!r}: {kind_of(value)} where a text is expected; write a text or leave the key out"
        )
    return value or ""


def captions(row: Any, key: str, where: str) -> tuple[str, ...]:
    """The captions in ``row[key]``: a string, or a list of strings. Raises DataError for anything else."""
    value, where = need(row, key, (str, list), where), f"{where}, {key!r}"
    if isinstance(value, str):
        return captions_in_text(value, where)
    return tuple(_string(item, f"{where}, [{i}]") for i, item in enumerate(value))


def captions_in_text(value: str, where: str) -> tuple[str, ...]:
    """The captions that one string holds: itself, or the strings of a JSON list. Raises DataError."""
    held = _json(value) if _PRINTED.fullmatch(value.strip()) else None
    if isinstance(held, list):
        return tuple(_string(item, f"{where}, [{i}]") for i, item in enumerate(held))
    return (_whole(value, where),)


def answers(row: Any, key: str, where: str) -> tuple[str, ...]:
    """The answers in ``row[key]``: one or a list of them, each a string, a whole number, or a record ``{"answer": ...}`` as
    VQA v2 and VizWiz write it. An empty list says that the answers are withheld. Raises DataError for anything else, also
    for an empty answer that stands alone.
    """
    _present(row, key, where)
    value, where = row[key], f"{where}, {key!r}"
    if isinstance(value, str) and _BRACKETED.fullmatch(value.strip()):
        value = _json(value)
        if not isinstance(value, list | dict):
            raise DataError(f"{where}: {_said(row[key])} is no JSON list; {_ADVICE}")
    if isinstance(value, list):
        found = tuple(_answer(item, f"{where}, [{i}]") for i, item in enumerate(value))
    else:
        found = (_answer(value, where),)
    if found in [(word,) for word in _MISSING] and not isinstance(value, list):
        raise DataError(f"{where}: {value!r} stands for a missing value; {_ADVICE}, or drop the row")
    if found and not any(given.strip() for given in found):
        raise DataError(f"{where}: an empty answer; {_ADVICE}, or drop the row")
    return found


def _answer(value: Any, where: str) -> str:
    if isinstance(value, dict):
        _present(value, "answer", where)
        value, where = value["answer"], f"{where}, 'answer'"
    if type(value) is int and abs(value) < LARGEST:
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{where}: {kind_of(value)} where an answer is expected; {_ADVICE}, or drop the row")
    return _plain(value, where)


def _present(row: Any, key: str, where: str) -> None:
    """Raises DataError where a row is no record with that key."""
    if not isinstance(row, dict) or key not in row:
        need(row, key, object, where)


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {kind_of(value)} where a caption is expected; write it as a text")
    return _plain(value, where)


def _plain(value: str, where: str) -> str:
    if _PRINTED.fullmatch(value.strip()):
        raise DataError(
            f"{where}: {_said(value)} looks like a value that a program printed; write a text, or a JSON list of texts"
        )
    return value


def _whole(value: str, where: str) -> str:
    """A cell's one text, which no missing value is printed as."""
    if value.strip() in (*_MISSING, "None"):
        raise DataError(f"{where}: {value!r} stands for a missing value; write a text, or drop the row")
    return _plain(value, where)


def _json(value: str) -> Any:
    """What a text is as JSON; None where it is none."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _said(value: str) -> str:
    return repr(value if len(value) <= 40 else f"{value[:40]}...")
