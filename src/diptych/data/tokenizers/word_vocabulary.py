"""The lists of words that VSE++ and SCAN publish with their weights: a word an id, and texts cut as NLTK cuts them."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from typing import Any

from diptych.data.safe_pickle import read_plain
from diptych.data.tokenizers.ptb import words
from diptych.data.tokenizers.vocabulary import Vocabulary, first_repeated

SPECIAL = PAD, START, END, UNKNOWN = ("<pad>", "<start>", "<end>", "<unk>")
CLASSES = ("vocab.Vocabulary", "__main__.Vocabulary")
"""Whose fields VSE++'s pickle holds: the official code makes it by a script that is also imported."""

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class WordList:
    """Lower case of ASCII letters, words as data.tokenizers.ptb has them; a word that the list has not is <unk>."""

    def __init__(self, pieces: tuple[str, ...]):
        self._pieces, self._ids = pieces, {piece: i for i, piece in enumerate(pieces)}

    def encode(self, text: str) -> list[int]:
        unknown = self._ids[UNKNOWN]
        return [self._ids.get(word, unknown) for word in words(text.translate(_LOWER))]

    def decode(self, ids: list[int]) -> str:
        return " ".join(self._pieces[i] for i in ids)

    def opens(self, pieces: Sequence[str]) -> tuple[bool, ...]:
        return (True,) * len(pieces)

    def closes(self, pieces: Sequence[str]) -> tuple[bool, ...]:
        return (False,) * len(pieces)


def word_list(name: str, held: bytes) -> Vocabulary:
    """The vocabulary of SCAN's JSON, or of VSE++'s pickle where `name` ends with .pkl, of which nothing is run. There is no [MASK]: the
    word that begins texts stands for it, since it stands nowhere else in them. Raises ValueError.
    """
    fields = read_plain(held, CLASSES) if name.endswith(".pkl") else _json(held)
    ids = fields.get("word2idx") if isinstance(fields, dict) else None
    if not isinstance(ids, dict) or not all(isinstance(word, str) for word in ids):
        raise ValueError("it holds no word2idx, of each word its number")
    if sorted(i if type(i) is int else -1 for i in ids.values()) != list(range(len(ids))):
        raise ValueError(f"the numbers of its {len(ids):,} words are not 0 to {len(ids) - 1:,}, each once")
    if missing := [word for word in SPECIAL if word not in ids]:
        raise ValueError(f"{', '.join(missing)} must be among the words")
    pieces = tuple(sorted(ids, key=lambda word: ids[word]))
    start = ids[START]
    return Vocabulary(name, pieces, ids[PAD], ids[UNKNOWN], start, ids[END], start, WordList(pieces))


def _json(held: bytes) -> Any:
    try:
        return json.loads(held, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not readable as JSON ({str(error)[:80]})") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError where it has a key twice, of which JSON would keep the last."""
    if (twice := first_repeated(key for key, _ in pairs)) is not None:
        raise ValueError(f"{twice[:40]!r} stands twice")
    return dict(pairs)
