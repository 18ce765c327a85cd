"""Text tokenizer for any vocabulary, and the vocabularies: bundled with the package, or read from a user's file."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256
from importlib import resources
from itertools import takewhile
from pathlib import Path

import torch

from diptych.batch import Text
from diptych.data.sources.base import DataError
from diptych.data.tokenizers.bpe import byte_pairs
from diptych.data.tokenizers.sentencepiece import sentencepieces
from diptych.data.tokenizers.tokenizer_json import vocabulary_of_tokenizer_json
from diptych.data.tokenizers.vocabulary import Vocabulary
from diptych.data.tokenizers.word_vocabulary import distinct_json, word_list
from diptych.data.tokenizers.wordpiece import wordpiece

BERT = "bert-base-uncased"  # BERT's WordPiece vocabulary
SCENES = "scenes"  # the subset of it that occurs in the built-in world, in the same order
CLIP = "clip"  # OpenAI's byte-pair encoding, which open_clip's CLIP and CoCa use too
SIZES = {BERT: 30522, SCENES: 114, CLIP: 49408}
"""Vocabulary sizes, so that a model's vocabulary is known by its size without reading any."""

WORDPIECE_SUFFIXES, SENTENCEPIECE_SUFFIXES, WORD_VOCABULARY_SUFFIXES = (".txt",), (".model", ".spm"), (".json", ".pkl")
"""Suffixes of vocabulary files: BERT's list, a token per line; a SentencePiece model; SCAN's and VSE++'s words, or a
tokenizer.json of Hugging Face.
"""
MAX_BYTES = 16 * 2**20
_DIGEST = re.compile(r"vocabulary-([0-9a-f]{16})")


@lru_cache
def vocabulary(name: str = BERT) -> Vocabulary:
    """A bundled vocabulary, by name."""
    folder = resources.files("diptych.data.tokenizers") / "vocab"
    if name == CLIP:
        lines = gzip.decompress((folder / f"{name}.txt.gz").read_bytes()).decode("utf-8").split("\n")
        return byte_pairs(name, lines)
    return wordpiece(name, _lines((folder / f"{name}.txt").read_bytes()))


def bundled(size: int) -> Vocabulary | None:
    """The bundled vocabulary of `size` tokens, for a model with as many word embeddings; None if there is none."""
    return next((vocabulary(name) for name, has in SIZES.items() if has == size), None)


def read_vocabulary(file: Path) -> Vocabulary:
    """The vocabulary in a file, named by a digest of its content (`vocabulary_file_name`). Raises DataError."""
    data = vocabulary_in(file)
    return _read(vocabulary_file_name(file, data), data, str(file))


def vocabulary_in(file: Path) -> bytes:
    """Bytes of a vocabulary file. Raises DataError for an unknown suffix or a file that is too large."""
    if file.suffix not in WORDPIECE_SUFFIXES + SENTENCEPIECE_SUFFIXES + WORD_VOCABULARY_SUFFIXES:
        raise DataError(
            f"{file}: expected a list of tokens (.txt), a SentencePiece model (.model, .spm), SCAN's or VSE++'s words "
            "(.json, .pkl), or a tokenizer.json of Hugging Face"
        )
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check --vocabulary") from None
    if len(data) > MAX_BYTES:
        raise DataError(f"{file}: expected a vocabulary of at most {MAX_BYTES:,} bytes; check --vocabulary")
    return data


def vocabulary_file_name(file: Path, data: bytes) -> str:
    """``vocabulary-DIGEST.suffix``, the same for the same content under any path.

    Raises DataError if the file's own name has another digest.
    """
    digest = sha256(data).hexdigest()[:16]
    claimed = _DIGEST.fullmatch(file.stem)
    if claimed and claimed[1] != digest:
        raise DataError(f"{file}: its content has changed: it is not the vocabulary that its run was trained with")
    return f"vocabulary-{digest}{file.suffix}"


@lru_cache(maxsize=2)
def _read(name: str, data: bytes, where: str) -> Vocabulary:
    try:
        if name.endswith(SENTENCEPIECE_SUFFIXES):
            return sentencepieces(name, data)
        if name.endswith(".json") and isinstance(content := distinct_json(data), dict) and "model" in content:
            return vocabulary_of_tokenizer_json(name, content)
        if name.endswith(WORD_VOCABULARY_SUFFIXES):
            return word_list(name, data)
        return wordpiece(name, _lines(data))
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def _lines(data: bytes) -> tuple[str, ...]:
    return tuple(data.decode("utf-8").replace("\r\n", "\n").rstrip("\n").split("\n"))


class Tokenizer:
    """Text tokenizer: adds the start and end tokens, [CLS] and [SEP] or those of CLIP and SentencePiece, and pads.

    Special tokens inside a text are not recognised: "[MASK]" in a caption is tokenized as ordinary text.
    """

    def __init__(self, max_length: int = 40, known: Vocabulary | None = None):
        self.vocabulary, self.max_length = known or vocabulary(BERT), max_length
        self._opens, self._closes = torch.tensor(self.vocabulary.opens), torch.tensor(self.vocabulary.closes)

    def encode(self, texts: list[str]) -> Text:
        """``[CLS] tokens [SEP]``, truncated to `max_length` and padded to the longest text of the batch."""
        known = self.vocabulary
        rows = [[known.cls, *known.subwords.encode(text)[: self.max_length - 2], known.sep] for text in texts]
        lengths = torch.tensor([[len(row)] for row in rows])
        places = torch.arange(int(lengths.max()))
        ids = torch.tensor([row + [known.pad] * (len(places) - len(row)) for row in rows])
        begins = self._opens[ids]
        begins[:, 1:] |= self._closes[ids[:, :-1]]
        begins[:, 1] = True
        return Text(ids, places < lengths, begins & (places > 0) & (places < lengths - 1))

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the end token, without start and padding tokens; [MASK] and unknown tokens are kept."""
        known = self.vocabulary
        left_out = (known.cls,) if known.pad_is_word else (known.cls, known.pad)
        return known.subwords.decode([i for i in takewhile(lambda i: i != known.sep, ids) if i not in left_out])
