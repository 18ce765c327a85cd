"""Masked captioning: hidden words of a caption, given the image and the words before them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from diptych.models.verbs import FusesOnward
from diptych.objectives.draws import Masking
from diptych.objectives.views import Views
from diptych.step import Floor
from diptych.tokens import Tokens


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
        masked = views.masked(self.masking)
        logits = views.head("captions", self.text(views).rows(masked.hidden)).float()
        words = masked.original[masked.hidden]
        return {
            self.name: smoothed_divergence(logits, words, self.smoothing).sum(),
            f"{self.name}/accuracy": (logits.argmax(1) == words).sum().float().detach(),
        }

    def text(self, views: Views) -> Tokens:
        """Each masked caption's tokens, beside its image."""
        if not isinstance(views.model, FusesOnward):
            raise ValueError(f"{type(views.model).__name__} cannot read a caption as it grows")
        text = views.model.encode_text(views.masked(self.masking).text)
        return views.model.fuse_onward(text, views.image).text

    def floor(self, statistics: Mapping[str, float]) -> Floor | None:
        return None


def smoothed_divergence(
    logits: Float[Tensor, "n v"], words: Int[Tensor, " n"], smoothing: float
) -> Float[Tensor, " n"]:
    """Kullback-Leibler divergence from labels of 1 - `smoothing` at the true word and the rest spread over the others."""
    log = F.log_softmax(logits, 1)
    right = log.gather(1, words[:, None]).squeeze(1)
    share = smoothing / (logits.shape[1] - 1)
    cross = (1 - smoothing - share) * right + share * log.sum(1)
    sure = 1 - smoothing
    entropy = -sure * math.log(sure) - (smoothing * math.log(share) if smoothing else 0.0)
    return -entropy - cross
