"""Vocabularies of subword tokens, and the interface of their tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable


@runtime_checkable
class SubwordTokenizer(Protocol):
    """Tokenizes text with one vocabulary (WordPiece, BPE, SentencePiece).

    Special tokens in a text are not recognised.
    """

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""
        ...

    def opens(self, tokens: Sequence[str]) -> tuple[bool, ...]:
        """For each token, whether it begins a word."""
        ...

    def closes(self, tokens: Sequence[str]) -> tuple[bool, ...]:
        """For each token, whether it ends a word, so that the next one begins another."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids, the ids of special tokens, and the tokenizer.

    `pad_is_word`: the padding id is also that of an ordinary token (CLIP pads with "!"). `unknown`: id of the token for
    text that cannot be tokenized.
    """

    name: str
    tokens: tuple[str, ...]
    pad: int
    unknown: int
    cls: int
    sep: int
    mask: int
    subwords: SubwordTokenizer = field(compare=False)
    pad_is_word: bool = False

    @property
    def size(self) -> int:
        return len(self.tokens)

    @property
    def special(self) -> tuple[int, ...]:
        """Ids of the special tokens, which no text is tokenized to."""
        return (self.cls, self.sep, self.mask) if self.pad_is_word else (self.pad, self.cls, self.sep, self.mask)

    @cached_property
    def opens(self) -> tuple[bool, ...]:
        """For each token, whether it begins a word."""
        return self.subwords.opens(self.tokens)

    @cached_property
    def closes(self) -> tuple[bool, ...]:
        """For each token, whether it ends a word."""
        return self.subwords.closes(self.tokens)


def first_repeated(tokens: Iterable[str]) -> str | None:
    """The first token that occurs a second time; None if all differ."""
    previous: set[str] = set()
    for token in tokens:
        if token in previous:
            return token
        previous.add(token)
    return None
