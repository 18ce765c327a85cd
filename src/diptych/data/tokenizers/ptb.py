"""Words as the Penn Treebank cuts them, which NLTK's `word_tokenize` does (as of 2026): VSE++'s and SCAN's lists are of such words.

Differs: NLTK asks a trained model of where sentences end (punkt) whether a full stop inside a text belongs to its word. Here it
does behind one letter, behind what has another stop in it, and behind the abbreviations below. In 2017, when the lists were made,
NLTK still left a single quote that opens on its word ('go), which is cut off here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

CLOSING = "])}>\"'»”’"
"""What may follow the full stop that ends a sentence."""
ABBREVIATIONS = frozenset(
    ["a.m", "co", "corp", "dr", "etc", "inc", "jr", "ltd", "mr", "mrs", "ms", "mt", "p.m", "sr", "st", "u.s", "vs"]
)

_MARK = re.compile(r"\.{2,}|--|`+|''|[\"«»“‘„”’;@#$%&?!*()\[\]{}<>\u2012-\u2015]|[:,](?!\d)|\s")
_OPENED_AFTER = " ([{<"
_CLITIC = re.compile(r"(?<=[^'])(?:'(?:s|m|d|ll|re|ve)|n't)$", re.IGNORECASE)
_QUOTED = re.compile(r"'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", re.IGNORECASE)
_JOINED = re.compile(r"\b(can(?=not\b)|gim(?=me\b)|gon(?=na\b)|got(?=ta\b)|lem(?=me\b)|wan(?=na\b)|d(?='ye\b)|more(?='n\b))", re.I)  # fmt: skip
"""First halves of what is said as one word: "can" of "cannot", "gon" of "gonna"."""


def words(text: str) -> list[str]:
    """The words and marks of a text, in order; double quotes as `` and ''."""
    chunks, found = text.split(), []
    for k, chunk in enumerate(chunks):
        chunk = _stop_apart(chunk, k == len(chunks) - 1)
        end = 0
        for mark in _MARK.finditer(chunk):
            before = chunk[mark.start() - 1] if mark.start() else " " * bool(k)
            found += [*_word(chunk[end : mark.start()]), *_mark(mark.group(), before)]
            end = mark.end()
        found += _word(chunk[end:])
    return found


def _stop_apart(chunk: str, last: bool) -> str:
    """With a space before the full stop that ends a sentence, as the last one does always."""
    told = chunk.rstrip(CLOSING)
    ends = told.endswith(".") and not told.endswith("..") and (last or not _abbreviated(told[:-1]))
    return f"{told[:-1]} {chunk[len(told) - 1 :]}" if ends else chunk


def _abbreviated(word: str) -> bool:
    word = word.lower().lstrip("([{<\"'`")
    return (len(word) == 1 and word.isalpha()) or "." in word or word in ABBREVIATIONS


def _mark(mark: str, before: str) -> Iterator[str]:
    """A mark by itself; of double quotes those that open are told from those that close."""
    if mark in ('"', "''"):
        yield "``" if before in _OPENED_AFTER and (before or mark == '"') else "''"
    elif not mark.isspace():
        yield mark


def _word(chunk: str) -> Iterator[str]:
    """What lies between marks: a quote before it, what is said with it, and what hangs on it ('s, n't), each by itself."""
    if _QUOTED.match(chunk):
        yield "'"
        chunk = chunk[1:]
    closed = len(chunk) > 1 and chunk.endswith("'") and not chunk.endswith("''")
    chunk = chunk.removesuffix("'") if closed else chunk
    hanging = _CLITIC.search(chunk)
    at = hanging.start() if hanging else len(chunk)
    yield from _JOINED.sub(r"\1 ", chunk[:at]).split()
    yield from filter(None, (chunk[at:], "'" if closed else ""))
