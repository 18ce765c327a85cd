"""Masked captioning: hidden words of a caption, given the image and the words before them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from diptych.modules.tokens import Tokens
from diptych.objectives.cross_entropy import chunked_cross_entropy, output_layer, vocab_size_of
from diptych.objectives.sampling import WordMasking
from diptych.objectives.views import Views
from diptych.protocols import CausalFusionEncoder, ChanceLoss


@dataclass(frozen=True)
class MaskedCaptioning:
    """Divergence from smoothed labels at the hidden pieces (BEiT-3, section 3.1: most of a caption is hidden).

    The true word's label is 1 - `smoothing`, the others share the rest evenly, as in the official code.
    """

    masking: WordMasking = field(default_factory=lambda: WordMasking(rate=0.7, ends=True))
    label_smoothing: float = 0.1
    name: str = "masked_captions"
    weight: float = 1.0

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = views.masked(self.masking).masked.sum().float()
        return {self.name: n, f"{self.name}/accuracy": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        masked, head = views.masked(self.masking), output_layer(views.heads["captions"])
        words = masked.original[masked.masked]
        n = vocab_size_of(head)
        # spread over all words, the true one too, this much gives the others their share
        others = self.label_smoothing * n / (n - 1)
        loss, right = chunked_cross_entropy(head, self.text(views).gather(masked.masked), words, others)
        return {
            self.name: loss - len(words) * smoothed_entropy(self.label_smoothing, n),
            f"{self.name}/accuracy": right.float(),
        }

    def text(self, views: Views) -> Tokens:
        """Each masked caption's tokens, beside its image."""
        if not isinstance(views.model, CausalFusionEncoder):
            raise ValueError(f"{type(views.model).__name__} cannot read a caption as it grows")
        text = views.model.encode_text(views.masked(self.masking).text)
        return views.model.fuse_causal(text, views.image).text

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        return None


def smoothed_entropy(smoothing: float, vocab_size: int) -> float:
    """Of labels of 1 - `smoothing` at the true word and the rest spread over the others, in nats."""
    sure, share = 1 - smoothing, smoothing / (vocab_size - 1)
    return -sure * math.log(sure) - (smoothing * math.log(share) if smoothing else 0.0)
