"""Language modelling: each next piece of a text, given what it speaks of and the pieces before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from diptych.inputs import Text
from diptych.models.verbs import Decodes
from diptych.objectives.views import Views
from diptych.step import Floor


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
        text, logits = views.given_text, self.logits(views)
        which = asked(text, self.given)
        right = (logits.argmax(-1)[:, :-1] == text.ids[:, 1:]) & which
        return {
            self.name: next_losses(logits, text, self.smoothing, self.given).sum(),
            f"{self.name}/accuracy": right.sum().float().detach(),
        }

    def logits(self, views: Views) -> Float[Tensor, "b n vocabulary"]:
        """Of the token that follows each token of the text."""
        model = views.model
        if not isinstance(model, Decodes):
            raise ValueError(f"{type(model).__name__} does not speak")
        return views.once(("next words",), lambda: model.decode(views.given_text, views.image))

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


def next_losses(
    logits: Float[Tensor, "b n v"], text: Text, smoothing: float = 0.0, given: int = 1
) -> Float[Tensor, "b after"]:
    """Cross entropy of every token behind the first, nought where none is asked for.

    The last column scores nothing, and stays: to cut it off is a copy of all logits, and one of their gradients.
    """
    words = F.pad(text.ids[:, 1:].masked_fill(~asked(text, given), -100), (0, 1), value=-100)
    rows = logits.float().flatten(0, 1)  # a word's scores side by side: twice as fast as (b, v, n)
    losses = F.cross_entropy(rows, words.flatten(), reduction="none", label_smoothing=smoothing)
    return losses.view_as(words)[:, :-1]
