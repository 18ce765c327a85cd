"""Byte-pair encoding of CLIP (Radford et al. 2021, section 2.4): 49,408 tokens of lower-cased English, made by 48,894
merges of bytes.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import ftfy
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Pipeline

from diptych.data.tokenizers.vocabulary import Vocabulary

MERGES = 49152 - 256 - 2
"""Number of merges in the published file that are used; those after them belong to no vocabulary."""
END = "</w>"
BEGIN_TEXT, END_TEXT = "<start_of_text>", "<end_of_text>"
WORDS = r"'[s\u017f]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class BytePairs:
    """CLIP's tokenizer: a text is cleaned, lower-cased and split into words, digits and runs of punctuation.

    The bytes of each of them are merged pair by pair. The last token of a word ends with ``</w>``.

    Source: openai/CLIP, clip/simple_tokenizer.py, as in open_clip 3.3.0.
    Differs: ``<start_of_text>`` and ``<end_of_text>`` written in a text are words like any others.
    """

    def __init__(self, tokens: tuple[str, ...], merges: list[tuple[str, str]]):
        self.merges = merges
        ids = {token: i for i, token in enumerate(tokens)}
        model = models.BPE(ids, merges, continuing_subword_prefix="", end_of_word_suffix=END)
        self._pipeline, self._tokens = Pipeline(model), tokens
        words = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._pipeline.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
        self._bytes = {letter: byte for byte, letter in byte_letters().items()}

    def encode(self, text: str) -> list[int]:
        return self._pipeline.encode(cleaned(text), add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        letters = "".join(self._tokens[i] for i in ids)
        return bytes(self._bytes[c] for c in letters).decode("utf-8", "replace").replace(END, " ").strip()

    def opens(self, tokens: Sequence[str]) -> tuple[bool, ...]:
        return (False,) * len(tokens)

    def closes(self, tokens: Sequence[str]) -> tuple[bool, ...]:
        return tuple(token.endswith(END) for token in tokens)


def cleaned(text: str) -> str:
    """The text in lower case, with mojibake (``cafÃ©``) repaired, HTML entities decoded and white space collapsed."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def byte_letters() -> dict[int, str]:
    """A printable character for every byte: its own if it has one, else one from U+0100 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def byte_pairs(name: str, lines: list[str]) -> Vocabulary:
    """Vocabulary of a published list of merges, whose first line is a title.

    CLIP has no [MASK]: the token that begins texts is used for it, since it occurs nowhere else in them.
    """
    merges = [(left, right) for left, right in map(str.split, lines[1 : MERGES + 1])]
    letters = list(byte_letters().values())
    tokens = (*letters, *(letter + END for letter in letters), *map("".join, merges), BEGIN_TEXT, END_TEXT)
    begin, end = len(tokens) - 2, len(tokens) - 1
    tokenizer = BytePairs(tokens, merges)
    return Vocabulary(name, tokens, 0, end, begin, end, begin, tokenizer, pad_is_word=True)
