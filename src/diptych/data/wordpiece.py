"""BERT's uncased WordPiece, with the vocabularies that come with the package: no download, no network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import torch
from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from diptych.inputs import Text

BERT = "bert-base-uncased"  # its 30,522 pieces in the order of their ids
SCENES = "scenes"  # those of them that the built-in world says, in the same order


@dataclass(frozen=True)
class Vocabulary:
    """Pieces in the order of their ids, and where those stand that are no words."""

    name: str
    pieces: tuple[str, ...]
    pad: int
    unknown: int
    cls: int
    sep: int
    mask: int

    @property
    def size(self) -> int:
        return len(self.pieces)

    @property
    def special(self) -> tuple[int, ...]:
        """What no text says of itself."""
        return self.pad, self.cls, self.sep, self.mask


@lru_cache
def vocabulary(name: str = BERT) -> Vocabulary:
    """A vocabulary of the package, by its name."""
    text = (resources.files("diptych.data") / "vocab" / f"{name}.txt").read_text("utf-8")
    pieces = tuple(text.rstrip("\n").split("\n"))
    return Vocabulary(name, pieces, *(pieces.index(f"[{p}]") for p in ("PAD", "UNK", "CLS", "SEP", "MASK")))


def bundled(size: int) -> Vocabulary | None:
    """The vocabulary of the package that has so many pieces: what a model with `size` word embeddings reads."""
    return next((known for known in map(vocabulary, (BERT, SCENES)) if known.size == size), None)


class Tokenizer:
    """Texts to ids and back: lower case, accents stripped, split at punctuation, then greedy longest pieces.

    Special tokens are never recognised inside a text: a caption that says "[MASK]" is three ordinary words.
    """

    def __init__(self, max_length: int = 40, known: Vocabulary | None = None):
        self.vocabulary, self.max_length = known or vocabulary(BERT), max_length
        pieces = self.vocabulary.pieces
        model = models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]", max_input_chars_per_word=100)
        self._pipeline = Pipeline(model)
        self._pipeline.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._pipeline.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[("[CLS]", self.vocabulary.cls), ("[SEP]", self.vocabulary.sep)],
        )
        self._pipeline.decoder = decoders.WordPiece()
        self._pipeline.enable_truncation(max_length)
        self._begins = torch.tensor([not p.startswith("##") for p in pieces])
        self._begins[list(self.vocabulary.special)] = False

    def encode(self, texts: list[str]) -> Text:
        """``[CLS] pieces [SEP]``, at most `max_length` of them, padded to the longest of the batch."""
        rows = [self._pipeline.encode(t).ids for t in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.vocabulary.pad] * (longest - len(row)) for row in rows])
        real = torch.arange(longest) < torch.tensor([[len(row)] for row in rows])
        return Text(ids, real, self._begins[ids])

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text; [PAD], [CLS] and [SEP] are left out, [MASK] and [UNK] kept."""
        hidden = (self.vocabulary.pad, self.vocabulary.cls, self.vocabulary.sep)
        return self._pipeline.decode([i for i in ids if i not in hidden])
