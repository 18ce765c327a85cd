"""Masked captioning: hidden words of a caption, given the image and the words before them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from diptych.modules.tokens import Tokens
from diptych.objectives.cross_entropy import scoring, size, word_losses
from diptych.objectives.sampling import Masking
from diptych.objectives.views import Views
from diptych.protocols import Floor, FusesOnward


@dataclass(frozen=True)
class MaskedCaptions:
    """Divergence from smoothed labels at the hidden pieces (BEiT-3, section 3.1: most of a caption is hidden).

    The true word's label is 1 - `smoothing`, the others share the rest evenly, as in the official code.
    """

    masking: Masking = field(default_factory=lambda: Masking(rate=0.7, ends=True))
    smoothing: float = 0.1
    name: str = "captions"
    weight: float = 1.0

    def counts(self, views: Views) -> dict[str, Tensor]:
        n = views.masked(self.masking).hidden.sum().float()
        return {self.name: n, f"{self.name}/accuracy": n}

    def totals(self, views: Views) -> dict[str, Tensor]:
        masked, head = views.masked(self.masking), scoring(views.heads["captions"])
        words = masked.original[masked.hidden]
        n = size(head)
        # spread over all words, the true one too, this much gives the others their share
        others = self.smoothing * n / (n - 1)
        loss, right = word_losses(head, self.text(views).rows(masked.hidden), words, others)
        return {
            self.name: loss - len(words) * smoothed_entropy(self.smoothing, n),
            f"{self.name}/accuracy": right.float(),
        }

    def text(self, views: Views) -> Tokens:
        """Each masked caption's tokens, beside its image."""
        if not isinstance(views.model, FusesOnward):
            raise ValueError(f"{type(views.model).__name__} cannot read a caption as it grows")
        text = views.model.encode_text(views.masked(self.masking).text)
        return views.model.fuse_onward(text, views.image).text

    def floor(self, statistics: Mapping[str, float]) -> Floor | None:
        return None


def smoothed_entropy(smoothing: float, vocabulary: int) -> float:
    """Of labels of 1 - `smoothing` at the true word and the rest spread over the others, in nats."""
    sure, share = 1 - smoothing, smoothing / (vocabulary - 1)
    return -sure * math.log(sure) - (smoothing * math.log(share) if smoothing else 0.0)
