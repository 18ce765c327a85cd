"""The vocabularies that come with the package, no download, no network; and those of files that the user has.

Texts to ids and back, with any vocabulary.
"""

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
from diptych.data.tokenizers.vocabulary import Vocabulary
from diptych.data.tokenizers.word_vocabulary import word_list
from diptych.data.tokenizers.wordpiece import wordpiece

BERT = "bert-base-uncased"  # its pieces in the order of their ids
SCENES = "scenes"  # those of them that the built-in world says, in the same order
CLIP = "clip"  # OpenAI's byte pairs, which open_clip's CLIPs and CoCas read too
SIZES = {BERT: 30522, SCENES: 114, CLIP: 49408}
"""How many pieces each has, so that none is read to be told from the others."""

LISTS, MODELS, WORDS = (".txt",), (".model", ".spm"), (".json", ".pkl")
"""How files of vocabularies end: BERT's form, a piece a line; a sentencepiece model; SCAN's and VSE++'s words."""
MOST_BYTES = 16 * 2**20
_DIGEST = re.compile(r"vocabulary-([0-9a-f]{16})")


@lru_cache
def vocabulary(name: str = BERT) -> Vocabulary:
    """A vocabulary of the package, by its name."""
    folder = resources.files("diptych.data.tokenizers") / "vocab"
    if name == CLIP:
        lines = gzip.decompress((folder / f"{name}.txt.gz").read_bytes()).decode("utf-8").split("\n")
        return byte_pairs(name, lines)
    return wordpiece(name, _lines((folder / f"{name}.txt").read_bytes()))


def bundled(size: int) -> Vocabulary | None:
    """The vocabulary of the package that has so many pieces: what a model with `size` word embeddings reads."""
    return next((vocabulary(name) for name, has in SIZES.items() if has == size), None)


def read_vocabulary(file: Path) -> Vocabulary:
    """The vocabulary of a file, called by what it holds: see `called`. Raises DataError, also for one that was called so and
    holds another.
    """
    held = held_in(file)
    return _read(called(file, held), held, str(file))


def held_in(file: Path) -> bytes:
    """What a vocabulary's file holds. Raises DataError where it ends otherwise than such files, or is too large for one."""
    if file.suffix not in LISTS + MODELS + WORDS:
        raise DataError(
            f"{file}: a vocabulary is a list of pieces (.txt), a sentencepiece model (.model, .spm), or SCAN's or VSE++'s words "
            "(.json, .pkl)"
        )
    try:
        with file.open("rb") as opened:
            held = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check --vocabulary") from None
    if len(held) > MOST_BYTES:
        raise DataError(f"{file}: a vocabulary has at most {MOST_BYTES:,} bytes")
    return held


def called(file: Path, held: bytes) -> str:
    """``vocabulary-DIGEST.suffix``: the same for the same pieces wherever they lie. Raises DataError where the file is called so
    by another digest.
    """
    digest = sha256(held).hexdigest()[:16]
    claimed = _DIGEST.fullmatch(file.stem)
    if claimed and claimed[1] != digest:
        raise DataError(f"{file}: holds another vocabulary than the one that its run learned with")
    return f"vocabulary-{digest}{file.suffix}"


@lru_cache(maxsize=2)
def _read(name: str, held: bytes, where: str) -> Vocabulary:
    try:
        if name.endswith(MODELS):
            return sentencepieces(name, held)
        if name.endswith(WORDS):
            return word_list(name, held)
        return wordpiece(name, _lines(held))
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def _lines(held: bytes) -> tuple[str, ...]:
    return tuple(held.decode("utf-8").replace("\r\n", "\n").rstrip("\n").split("\n"))


class Tokenizer:
    """A vocabulary's pieces between the token that begins a text and the one that ends it: [CLS] and [SEP], or as CLIP and
    sentencepiece call theirs. Special tokens are never recognised inside a text: a caption that says "[MASK]" says ordinary words.
    """

    def __init__(self, max_length: int = 40, known: Vocabulary | None = None):
        self.vocabulary, self.max_length = known or vocabulary(BERT), max_length
        self._opens, self._closes = torch.tensor(self.vocabulary.opens), torch.tensor(self.vocabulary.closes)

    def encode(self, texts: list[str]) -> Text:
        """``[CLS] pieces [SEP]``, at most `max_length` of them, padded to the longest of the batch."""
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
        """Readable text, up to its end; what begins and pads it is left out, [MASK] and what is unknown are kept."""
        known = self.vocabulary
        hidden = (known.cls,) if known.pad_is_word else (known.cls, known.pad)
        return known.subwords.decode([i for i in takewhile(lambda i: i != known.sep, ids) if i not in hidden])
