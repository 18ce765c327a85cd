"""Texts to ids and back, with any vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

import torch

from diptych.data.vocabularies import BERT, vocabulary
from diptych.data.vocabulary import Vocabulary
from diptych.inputs import Text


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
        rows = [[known.cls, *known.cutter.cut(text)[: self.max_length - 2], known.sep] for text in texts]
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
        return known.cutter.join([i for i in takewhile(lambda i: i != known.sep, ids) if i not in hidden])
