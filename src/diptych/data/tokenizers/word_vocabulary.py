"""Word-level vocabularies that VSE++ and SCAN publish with their weights, with NLTK's word tokenization."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from typing import Any

from diptych.data.tokenizers.ptb import words
from diptych.data.tokenizers.vocabulary import Vocabulary, first_repeated
from diptych.utils.safe_pickle import read_plain

SPECIAL = PAD, START, END, UNKNOWN = ("<pad>", "<start>", "<end>", "<unk>")
CLASSES = ("vocab.Vocabulary", "__main__.Vocabulary")
"""Class names in VSE++'s pickles, whose fields are read; the official script that writes them is run or imported."""

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class WordList:
    """Word tokenizer: lower-cases ASCII letters, splits words by tokenizers.ptb; words not in the list become <unk>."""

    def __init__(self, tokens: tuple[str, ...]):
        self._tokens, self._ids = tokens, {token: i for i, token in enumerate(tokens)}

    def encode(self, text: str) -> list[int]:
        unknown = self._ids[UNKNOWN]
        return [self._ids.get(word, unknown) for word in words(text.translate(_LOWER))]

    def decode(self, ids: list[int]) -> str:
        return " ".join(self._tokens[i] for i in ids)

    def opens(self, tokens: Sequence[str]) -> tuple[bool, ...]:
        return (True,) * len(tokens)

    def closes(self, tokens: Sequence[str]) -> tuple[bool, ...]:
        return (False,) * len(tokens)


def word_list(name: str, data: bytes) -> Vocabulary:
    """Vocabulary of SCAN's JSON, or of VSE++'s pickle (parsed without running it) if `name` ends with .pkl.

    There is no [MASK]: the start token is used for it, because it occurs nowhere else in a text. Raises ValueError.
    """
    fields = read_plain(data, CLASSES) if name.endswith(".pkl") else distinct_json(data)
    ids = fields.get("word2idx") if isinstance(fields, dict) else None
    if not isinstance(ids, dict) or not all(isinstance(word, str) for word in ids):
        raise ValueError("it has no word2idx, the id of each word")
    if sorted(i if type(i) is int else -1 for i in ids.values()) != list(range(len(ids))):
        raise ValueError(f"the ids of its {len(ids):,} words must be 0 to {len(ids) - 1:,}, each once")
    if missing := [word for word in SPECIAL if word not in ids]:
        raise ValueError(f"{', '.join(missing)} must be among the words")
    tokens = tuple(sorted(ids, key=lambda word: ids[word]))
    start = ids[START]
    return Vocabulary(name, tokens, ids[PAD], ids[UNKNOWN], start, ids[END], start, WordList(tokens))


def distinct_json(data: bytes) -> Any:
    """The value of a JSON text. Raises ValueError, also for a repeated key."""
    try:
        return json.loads(data, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it cannot be read as JSON ({str(error)[:80]})") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a repeated key, of which json would keep the last."""
    if (twice := first_repeated(key for key, _ in pairs)) is not None:
        raise ValueError(f"{twice[:40]!r} occurs twice")
    return dict(pairs)
