"""BERT's uncased WordPiece, with the vocabulary that comes with the package: no download, no network."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib import resources

import torch
from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from diptych.inputs import Text


@lru_cache(1)
def vocabulary() -> tuple[str, ...]:
    """The 30,522 pieces of bert-base-uncased, in the order of their ids."""
    text = (resources.files("diptych.data") / "vocab" / "bert-base-uncased.txt").read_text("utf-8")
    return tuple(text.rstrip("\n").split("\n"))


class Vocabulary:
    """Facts of bert-base-uncased that models and objectives need."""

    size = 30522
    pad, unknown, cls, sep, mask = 0, 100, 101, 102, 103
    special = (pad, cls, sep, mask)


class Tokenizer:
    """Texts to ids and back: lower case, accents stripped, split at punctuation, then greedy longest pieces.

    Special tokens are never recognised inside a text: a caption that says "[MASK]" is three ordinary words.
    """

    def __init__(self, max_length: int = 40):
        pieces = vocabulary()
        self.max_length = max_length
        model = models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]", max_input_chars_per_word=100)
        self._pipeline = Pipeline(model)
        self._pipeline.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._pipeline.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", Vocabulary.cls), ("[SEP]", Vocabulary.sep)]
        )
        self._pipeline.decoder = decoders.WordPiece()
        self._pipeline.enable_truncation(max_length)
        self._begins = torch.tensor([not p.startswith("##") for p in pieces])
        self._begins[list(Vocabulary.special)] = False

    def encode(self, texts: list[str]) -> Text:
        """``[CLS] pieces [SEP]``, at most `max_length` of them, padded to the longest of the batch."""
        rows = [self._pipeline.encode(t).ids for t in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [Vocabulary.pad] * (longest - len(row)) for row in rows])
        real = torch.arange(longest) < torch.tensor([[len(row)] for row in rows])
        return Text(ids, real, self._begins[ids])

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text; [PAD], [CLS] and [SEP] are left out, [MASK] and [UNK] kept."""
        hidden = (Vocabulary.pad, Vocabulary.cls, Vocabulary.sep)
        return self._pipeline.decode([i for i in ids if i not in hidden])
