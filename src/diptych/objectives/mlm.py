"""Masked language modelling: which words were hidden, given the rest of the text and the image?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from diptych.objectives.draws import Hiding, Masking
from diptych.objectives.hiding import RegionMasking
from diptych.objectives.views import Views
from diptych.step import Floor
from diptych.tokens import Pair


@dataclass(frozen=True)
class MaskedWords:
    """Cross entropy at the hidden pieces only; the vocabulary is scored nowhere else (BERT; ViLT, 3.2)."""

    masking: Masking = field(default_factory=Masking)
    name: str = "mlm"
    weight: float = 1.0
    beside: RegionMasking | None = None  # regions hidden at the same time, in the image that is shown (ViLBERT)

    def counts(self, views: Views) -> dict[str, Tensor]:
        n = views.masked(self.masking).hidden.sum().float()
        return {self.name: n, f"{self.name}/accuracy": n}

    def totals(self, views: Views) -> dict[str, Tensor]:
        masked = views.masked(self.masking)
        logits = views.head("words", self.pair(views).text.rows(masked.hidden)).float()
        words = masked.original[masked.hidden]
        return {
            self.name: F.cross_entropy(logits, words, reduction="sum"),
            f"{self.name}/accuracy": (logits.argmax(1) == words).sum().float().detach(),
        }

    def pair(self, views: Views) -> Pair:
        """What the words are guessed from."""
        if self.beside is None:
            return views.masked_pair(self.masking)
        return views.hidden_pair(Hiding(self.masking, self.beside))

    def floor(self, statistics: Mapping[str, float]) -> Floor | None:
        """The unigram entropy of the corpus, where `statistics` counts it ("unigram_entropy", nats per piece)."""
        if "unigram_entropy" not in statistics:
            return None
        return Floor(
            statistics["unigram_entropy"],
            "unigram entropy of the captions",
            "only word frequencies are learned: the context is not read; check the learning rate, warm-up and that texts vary",
        )
