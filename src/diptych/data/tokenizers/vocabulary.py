"""What texts are cut into: pieces in the order of their ids, and who cuts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable


@runtime_checkable
class SubwordTokenizer(Protocol):
    """Cuts texts into pieces of one vocabulary, and joins them again. Special tokens are never recognised inside a text."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text's pieces, with no special one among them."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Readable text of some pieces."""
        ...

    def opens(self, pieces: Sequence[str]) -> tuple[bool, ...]:
        """Of each piece, whether a word begins with it."""
        ...

    def closes(self, pieces: Sequence[str]) -> tuple[bool, ...]:
        """Of each piece, whether a word ends with it, so that the next one begins another."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """Pieces in the order of their ids, where those stand that are no words, and the cutter that knows them.

    `pad_is_word`: the padding's id is a word's too (CLIP pads with "!"). `unknown`: what stands for what cannot be cut.
    """

    name: str
    pieces: tuple[str, ...]
    pad: int
    unknown: int
    cls: int
    sep: int
    mask: int
    subwords: SubwordTokenizer = field(compare=False)
    pad_is_word: bool = False

    @property
    def size(self) -> int:
        return len(self.pieces)

    @property
    def special(self) -> tuple[int, ...]:
        """What no text says of itself."""
        return (self.cls, self.sep, self.mask) if self.pad_is_word else (self.pad, self.cls, self.sep, self.mask)

    @cached_property
    def opens(self) -> tuple[bool, ...]:
        """Of each piece, whether a word begins with it."""
        return self.subwords.opens(self.pieces)

    @cached_property
    def closes(self) -> tuple[bool, ...]:
        """Of each piece, whether a word ends with it."""
        return self.subwords.closes(self.pieces)


def first_repeated(pieces: Iterable[str]) -> str | None:
    """The first piece that stood before, found in one pass; None where all differ."""
    known: set[str] = set()
    for piece in pieces:
        if piece in known:
            return piece
        known.add(piece)
    return None
