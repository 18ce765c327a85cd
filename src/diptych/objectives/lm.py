"""Language modelling: each next piece of a text, given what it speaks of and the pieces before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from diptych.batch import Text
from diptych.objectives.cross_entropy import chunked_cross_entropy
from diptych.objectives.views import Views
from diptych.protocols import CausalDecoder, ChanceLoss


@dataclass(frozen=True)
class LM:
    """Cross entropy of each next piece of a text that speaks of its image (BLIP, section 3.2; CoCa, section 3.2).

    The first `given` pieces of every text are no targets: at least the one that it begins with, and a prompt. `smoothing`:
    the targets' share that is spread over the whole vocabulary (the official BLIP: 0.1; not in the paper).
    """

    name: str = "lm"
    weight: float = 1.0
    label_smoothing: float = 0.0
    given: int = 1

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = without_prompt(views.text_input, self.given).sum().float()
        return {self.name: n, f"{self.name}/accuracy": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        model, text = views.model, views.text_input
        if not isinstance(model, CausalDecoder):
            raise ValueError(f"{type(model).__name__} cannot foretell a text")
        which = without_prompt(text, self.given)
        rows = model.decode_hidden_states(text, views.image).gather(F.pad(which, (0, 1)))
        loss, right = chunked_cross_entropy(model.lm_head(), rows, text.ids[:, 1:][which], self.label_smoothing)
        return {self.name: loss, f"{self.name}/accuracy": right.float()}

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """The unigram entropy of the corpus, where `statistics` counts it ("unigram_entropy", nats per piece)."""
        if self.label_smoothing or "unigram_entropy" not in statistics:
            return None
        return ChanceLoss(
            statistics["unigram_entropy"],
            "unigram entropy of the captions",
            "only word frequencies are learned: neither image nor earlier words are read; check the learning rate and warm-up",
        )


def without_prompt(text: Text, given: int = 1) -> Bool[Tensor, "b after"]:
    """Which of the tokens behind the first are to be foretold: the real ones that are not given."""
    which = text.mask[:, 1:].clone()
    which[:, : given - 1] = False
    return which
