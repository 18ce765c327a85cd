"""Texts alone: what a model learns to read on before it meets any image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from diptych.data.examples import LONGEST_TEXT, check_text
from diptych.data.source import Captioned
from diptych.data.tokenizer import Tokenizer
from diptych.inputs import Batch


class TextExamples:
    """Every caption of a source, without its picture."""

    def __init__(self, source: Captioned, tokenizer: Tokenizer):
        self.source, self.tokenizer = source, tokenizer
        self._places = [(i, k) for i in range(len(source)) for k in range(len(source.captions(i)))]

    def __len__(self) -> int:
        return len(self._places)

    def length(self, index: int) -> int:
        return len(self._text(index).split()) + 2

    def load(self, index: int, seed: int, step: int) -> str:
        text = self._text(index)
        check_text(text, self.source.where(self._places[index][0]))
        return text

    def collate(self, loaded: list[str], ids: Sequence[int], seed: int, step: int) -> Batch:
        return Batch(seed, step, torch.tensor(ids), text=self.tokenizer.encode(loaded))

    def _text(self, index: int) -> str:
        image, which = self._places[index]
        return self.source.captions(image)[which][:LONGEST_TEXT]
