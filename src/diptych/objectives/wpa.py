"""Word-patch alignment: a matched text should be cheap to carry onto its image, a mismatched one dear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.objectives.transport import Transport, transport
from diptych.objectives.views import Views
from diptych.step import Floor
from diptych.tokens import Pair


@dataclass(frozen=True)
class WordPatchAlignment:
    """Transport distance of matched pairs minus that of mismatched ones, per pair (ViLT, 3.2).

    Class tokens and [SEP] carry no mass. Differs from the paper's text, as the official code: mismatched pairs are
    pushed apart. Shares the matching objective's forward pass.
    """

    name: str = "wpa"
    weight: float = 0.1
    beta: float = 0.5
    iterations: int = 50

    def counts(self, views: Views) -> dict[str, Tensor]:
        matched = views.matching.matched
        return {
            self.name: torch.tensor(float(len(matched)), device=matched.device),
            f"{self.name}/matched": matched.sum().float(),
            f"{self.name}/mismatched": (~matched).sum().float(),
        }

    def totals(self, views: Views) -> dict[str, Tensor]:
        distance = self.transport(views.matching_pair).distance
        matched = views.matching.matched
        near, far = distance[matched].sum(), distance[~matched].sum()
        return {
            self.name: near - far,
            f"{self.name}/matched": near.detach(),
            f"{self.name}/mismatched": far.detach(),
        }

    def transport(self, pair: Pair) -> Transport:
        """The plan between words (without [CLS] and [SEP]) and patches (without the class token).

        Rows are the text's columns after [CLS], columns the image's after its class token.
        """
        words, patches = pair.text.by_span(name="words"), pair.image.by_span(name="patches")
        inner = words.real & words.real.roll(-1, 1)  # the last real word is [SEP]; so is a full row's, below
        inner[:, -1] = False
        return transport(words.canvas(), patches.canvas(), inner, patches.real, self.beta, self.iterations)

    def floor(self, statistics: Mapping[str, float]) -> Floor | None:
        """None: a difference of distances has no trivial value but zero, which is where it starts."""
        return None
