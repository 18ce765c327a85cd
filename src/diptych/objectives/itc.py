"""Image-text contrast: which text belongs to this image, and which image to this text?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diptych.objectives.views import Views
from diptych.step import Floor


@dataclass(frozen=True)
class ImageTextContrast:
    """Cross entropy of scaled cosines from image to text and from text to image, their mean (CLIP, figure 3).

    `heads`: the Contrast head of each readout that `unimodal` gives, in its order; their losses are averaged (VLMo has
    two). The rest of the batch, on all ranks, is what a sample is told from; micro-batches do not see each other.
    """

    name: str = "itc"
    weight: float = 1.0
    heads: tuple[str, ...] = ("contrast",)

    def counts(self, views: Views) -> dict[str, Tensor]:
        n = torch.tensor(float(len(views.batch)), device=views.batch.ids.device)
        return {self.name: n, f"{self.name}/accuracy": n}

    def totals(self, views: Views) -> dict[str, Tensor]:
        losses, right = [], []
        for readout, head in enumerate(self.heads):
            found = views.contrast(head, readout)
            own = found.first + torch.arange(len(found.to_text), device=found.to_text.device)
            losses.append((cross_entropy(found.to_text, own) + cross_entropy(found.to_image, own)) / 2)
            right.append((found.to_text.argmax(1) == own).sum().float())
        return {
            self.name: torch.stack(losses).mean(),
            f"{self.name}/accuracy": torch.stack(right).mean().detach(),
        }

    def floor(self, statistics: Mapping[str, float]) -> Floor | None:
        """ln of the number of candidates, where `statistics` tells it ("candidates": the global batch)."""
        if "candidates" not in statistics:
            return None
        return Floor(
            math.log(statistics["candidates"]),
            "every candidate alike",
            "images and texts are not yet told apart: check the temperature, the learning rate and that pairs are true",
        )


def cross_entropy(logits: Float[Tensor, "b m"], own: Tensor) -> Float[Tensor, ""]:
    return F.cross_entropy(logits.float(), own, reduction="sum")
