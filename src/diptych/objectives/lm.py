"""Language modelling: each next piece of a text, given what it speaks of and the pieces before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from diptych.batch import Text
from diptych.objectives.cross_entropy import word_losses
from diptych.objectives.views import Views
from diptych.protocols import Floor, Foretells


@dataclass(frozen=True)
class NextWords:
    """Cross entropy of each next piece of a text that speaks of its image (BLIP, section 3.2; CoCa, section 3.2).

    The first `given` pieces of every text are no targets: at least the one that it begins with, and a prompt. `smoothing`:
    the targets' share that is spread over the whole vocabulary (the official BLIP: 0.1; not in the paper).
    """

    name: str = "lm"
    weight: float = 1.0
    smoothing: float = 0.0
    given: int = 1

    def counts(self, views: Views) -> dict[str, Tensor]:
        n = asked(views.given_text, self.given).sum().float()
        return {self.name: n, f"{self.name}/accuracy": n}

    def totals(self, views: Views) -> dict[str, Tensor]:
        model, text = views.model, views.given_text
        if not isinstance(model, Foretells):
            raise ValueError(f"{type(model).__name__} cannot foretell a text")
        which = asked(text, self.given)
        rows = model.foretell(text, views.image).rows(F.pad(which, (0, 1)))
        loss, right = word_losses(model.word_head(), rows, text.ids[:, 1:][which], self.smoothing)
        return {self.name: loss, f"{self.name}/accuracy": right.float()}

    def floor(self, statistics: Mapping[str, float]) -> Floor | None:
        """The unigram entropy of the corpus, where `statistics` counts it ("unigram_entropy", nats per piece)."""
        if self.smoothing or "unigram_entropy" not in statistics:
            return None
        return Floor(
            statistics["unigram_entropy"],
            "unigram entropy of the captions",
            "only word frequencies are learned: neither image nor earlier words are read; check the learning rate and warm-up",
        )


def asked(text: Text, given: int = 1) -> Bool[Tensor, "b after"]:
    """Which of the tokens behind the first are to be foretold: the real ones that are not given."""
    which = text.real[:, 1:].clone()
    which[:, : given - 1] = False
    return which
