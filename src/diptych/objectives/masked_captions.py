"""Masked captioning: masked words of a caption, predicted from the image and earlier words (BEiT-3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from diptych.config.objectives import MaskedCaptions
from diptych.modules.tokens import Tokens
from diptych.objectives.cross_entropy import chunked_cross_entropy, output_layer, vocab_size_of
from diptych.objectives.definition import Definition, Needs, Setup
from diptych.objectives.pretraining import Objective
from diptych.objectives.random_choices import WordMasking
from diptych.objectives.views import Views
from diptych.protocols import CausalFusionEncoder, ChanceLoss


@dataclass(frozen=True)
class MaskedCaptionLoss:
    """Kullback-Leibler divergence from smoothed labels at the masked tokens (BEiT-3, section 3.1: 70 % are masked).

    The true word's label is 1 - `label_smoothing`, the other words share the rest evenly, as in the official code.
    """

    masking: WordMasking = field(default_factory=lambda: WordMasking(rate=0.7, ends=True))
    label_smoothing: float = 0.1
    name: str = "masked_captions"
    weight: float = 1.0

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = views.masked(self.masking).masked.sum().float()
        return {self.name: n, f"{self.name}/accuracy": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        masked, head = views.masked(self.masking), output_layer(views.heads["mlm"])
        words = masked.original[masked.masked]
        n = vocab_size_of(head)
        # chunked_cross_entropy spreads smoothing over all words; this much gives the other words `label_smoothing`
        smoothing = self.label_smoothing * n / (n - 1)
        loss, correct = chunked_cross_entropy(head, self.text(views).gather(masked.masked), words, smoothing)
        return {
            self.name: loss - len(words) * smoothed_entropy(self.label_smoothing, n),
            f"{self.name}/accuracy": correct.float(),
        }

    def text(self, views: Views) -> Tokens:
        """The tokens of each masked caption, fused causally with its image."""
        if not isinstance(views.model, CausalFusionEncoder):
            raise ValueError(f"{type(views.model).__name__} has no causal fusion (fuse_causal), which captioning needs")
        text = views.model.encode_text(views.masked(self.masking).text)
        return views.model.fuse_causal(text, views.image).text

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        return None


def smoothed_entropy(smoothing: float, vocab_size: int) -> float:
    """Entropy in nats of a label of 1 - `smoothing` at the true word, the rest spread evenly over the other words."""
    true, other = 1 - smoothing, smoothing / (vocab_size - 1)
    return -true * math.log(true) - (smoothing * math.log(other) if smoothing else 0.0)


def _losses(settings: MaskedCaptions, setup: Setup) -> list[Objective]:
    masking = setup.word_masking(settings.rate, settings.whole_words, ends=True)
    return [MaskedCaptionLoss(masking, settings.label_smoothing, weight=settings.weight)]


DEFINITION = Definition(
    MaskedCaptions, lambda _: Needs((CausalFusionEncoder,), "mlm", causal=True), _losses, trains="captioning"
)
