"""Image-text matching: does this text describe this image?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.objectives.draws import Hiding
from diptych.objectives.hidden import hidden_pair
from diptych.objectives.views import Views
from diptych.step import Floor


@dataclass(frozen=True)
class ImageTextMatching:
    """Cross entropy of match or no match on the pooled pair, the image replaced at random half of the time (ViLT, 3.2)."""

    name: str = "itm"
    weight: float = 1.0
    prior: float = 0.5  # share of matched pairs in the data
    hiding: Hiding | None = None  # what is hidden of the pair that is judged (ViLBERT reads words and regions so)

    def counts(self, views: Views) -> dict[str, Tensor]:
        n = torch.tensor(float(len(views.batch)), device=views.matching.matched.device)
        return {self.name: n, f"{self.name}/accuracy": n}

    def totals(self, views: Views) -> dict[str, Tensor]:
        logits = self.logits(views).float()
        matched = views.matching.matched
        right = (logits.argmax(1) == matched).sum().float()
        return {
            self.name: F.cross_entropy(logits, matched.long(), reduction="sum"),
            f"{self.name}/accuracy": right.detach(),
        }

    def logits(self, views: Views) -> Tensor:
        """(b, 2): mismatched, matched."""
        pair = views.matching_pair if self.hiding is None else hidden_pair(views, self.hiding)
        return views.head("match", pair.pooled)

    def floor(self, statistics: Mapping[str, float]) -> Floor:
        p = self.prior
        entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
        return Floor(
            entropy,
            "entropy of the matching prior",
            "text and image are not yet compared: matching needs image features that mean something; "
            "start from a taught image encoder, train masked words first, or lower the learning rate",
        )
