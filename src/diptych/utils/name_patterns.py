"""Patterns of parameter names: of what is frozen, and of what has a learning rate of its own."""

from __future__ import annotations

import itertools
import re
from fnmatch import fnmatchcase

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_RANGE = 1000  # numbers in one range


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern matches the first parts, between dots, of a parameter's name.

    ``*`` matches any text within a part, and ``{0..5}`` the numbers from 0 to 5: ``text.{0..5}`` matches
    ``text.3.attention.query.weight``. Raises ValueError for a range of more than `MAX_RANGE` numbers.
    """
    parts = name.split(".")
    return any(_matches_parts(parts, plain.split(".")) for plain in _expand(pattern))


def _matches_parts(name: list[str], pattern: list[str]) -> bool:
    first = name[: len(pattern)]
    return len(first) == len(pattern) and all(map(fnmatchcase, first, pattern))


def _expand(pattern: str) -> list[str]:
    """The patterns without ranges that a pattern stands for."""
    pieces = _RANGE.split(pattern)  # text, low, high, text, …
    ranges = []
    for low, high in zip(map(int, pieces[1::3]), map(int, pieces[2::3]), strict=True):
        if high - low >= MAX_RANGE:
            raise ValueError(f"{pattern!r:.60}: a range of more than {MAX_RANGE} numbers")
        ranges.append(range(low, high + 1))
    return [
        "".join(itertools.chain(*zip(pieces[::3], map(str, (*numbers, "")), strict=True)))
        for numbers in itertools.product(*ranges)
    ]
