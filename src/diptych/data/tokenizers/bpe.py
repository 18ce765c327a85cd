"""CLIP's byte pairs (Radford et al. 2021, section 2.4): 49,408 pieces of lower-cased English, from 48,894 merges of bytes."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from itertools import chain

from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Pipeline

from diptych.data.tokenizers.vocabulary import Vocabulary

MERGES = 49152 - 256 - 2
"""How many lines of the file are read, behind the first: those after them are of no vocabulary."""
END = "</w>"
BEGIN_TEXT, END_TEXT = "<start_of_text>", "<end_of_text>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"

_QUOTES = dict.fromkeys([0x02BC, *range(0x2018, 0x201C)], "'") | dict.fromkeys(range(0x201C, 0x2020), '"')
_LIGATURES = {c: unicodedata.normalize("NFKC", chr(c)) for c in chain((0x132, 0x133, 0x149), range(0x1C4, 0x1CD), range(0x1F1, 0x1F4), range(0xFB00, 0xFB07))}  # fmt: skip
_WIDE = {c: unicodedata.normalize("NFKC", chr(c)) for c in chain((0x3000,), range(0xFF01, 0xFFF0))}
_CONTROL = dict.fromkeys(chain(range(0x09), (0x0B,), range(0x0E, 0x20), (0x7F, 0xFEFF), range(0x206A, 0x2070), range(0xFFF9, 0xFFFD)))  # fmt: skip
_PLAIN = _QUOTES | _LIGATURES | _WIDE | _CONTROL


class BytePairs:
    """Cleaned, lower-cased, split into words, digits and runs of punctuation; then bytes are merged, pair after pair. The last
    piece of a word ends with </w>.

    Differs: of the library by which the official code mends texts, ftfy, curly quotes, ligatures, wide letters and control characters are
    done here; text that was decoded by a wrong table stays as it is.
    """

    def __init__(self, pieces: tuple[str, ...], merges: list[tuple[str, str]]):
        ids = {piece: i for i, piece in enumerate(pieces)}
        model = models.BPE(ids, merges, continuing_subword_prefix="", end_of_word_suffix=END)
        self._pipeline, self._pieces = Pipeline(model), pieces
        words = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._pipeline.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
        self._bytes = {letter: byte for byte, letter in byte_letters().items()}

    def encode(self, text: str) -> list[int]:
        return self._pipeline.encode(cleaned(text), add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        letters = "".join(self._pieces[i] for i in ids)
        return bytes(self._bytes[c] for c in letters).decode("utf-8", "replace").replace(END, " ").strip()

    def opens(self, pieces: Sequence[str]) -> tuple[bool, ...]:
        return (False,) * len(pieces)

    def closes(self, pieces: Sequence[str]) -> tuple[bool, ...]:
        return tuple(piece.endswith(END) for piece in pieces)


def cleaned(text: str) -> str:
    """Entities as the characters that they name, one kind of quotes and of spaces, nothing at the ends; lower case."""
    if "<" not in text:
        text = html.unescape(text)
    text = unicodedata.normalize("NFC", text.translate(_PLAIN))
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def byte_letters() -> dict[int, str]:
    """A letter for every byte: its own where it is printable and no space, else one behind the first 256."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def byte_pairs(name: str, lines: list[str]) -> Vocabulary:
    """The vocabulary of a list of merges, a title on its first line. CLIP has no [MASK]: the token that begins texts stands for it,
    since it stands nowhere else in them.
    """
    merges = [(left, right) for left, right in map(str.split, lines[1 : MERGES + 1])]
    letters = list(byte_letters().values())
    pieces = (*letters, *(letter + END for letter in letters), *map("".join, merges), BEGIN_TEXT, END_TEXT)
    begin, end = len(pieces) - 2, len(pieces) - 1
    cutter = BytePairs(pieces, merges)
    return Vocabulary(name, pieces, 0, end, begin, end, begin, cutter, pad_is_word=True)
