"""Image-text contrast: which text belongs to this image, and which image to this text?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.objectives.contrast import contrasted, taught
from diptych.objectives.distillation import soft_cross_entropy
from diptych.objectives.views import Views
from diptych.step import Floor


@dataclass(frozen=True)
class ImageTextContrast:
    """Cross entropy of scaled cosines from image to text and from text to image, their mean (CLIP, figure 3).

    `heads`: the Contrast head of each readout that `unimodal` gives, in its order; their losses are averaged (VLMo has
    two). The rest of the batch, on all ranks, is what a sample is told from; micro-batches do not see each other. Where
    several pairs share an image (labels["image"]), each of them is right.

    With a momentum model (ALBEF, section 3.2) a sample is told from that model's view of this rank's batch and from the
    queue, and the targets are (1 - alpha) the truth + alpha what the momentum model finds (section 3.3).
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
            found, lesson = contrasted(views, head, readout), taught(views, head, readout)
            true = found.own[:, None] == found.others
            to_text = to_image = true / true.sum(1, keepdim=True)
            if lesson is not None and views.lesson is not None:
                alpha = views.lesson.alpha
                to_text = alpha * lesson.to_text.float().softmax(1) + (1 - alpha) * to_text
                to_image = alpha * lesson.to_image.float().softmax(1) + (1 - alpha) * to_image
            both = soft_cross_entropy(found.to_text, to_text) + soft_cross_entropy(found.to_image, to_image)
            losses.append(both.sum() / 2)
            right.append(true.gather(1, found.to_text.argmax(1, keepdim=True)).sum().float())
        return {
            self.name: torch.stack(losses).mean(),
            f"{self.name}/accuracy": torch.stack(right).mean().detach(),
        }

    def floor(self, statistics: Mapping[str, float]) -> Floor | None:
        """ln of the number of candidates, where `statistics` tells it ("candidates": the global batch, and the queue)."""
        if "candidates" not in statistics:
            return None
        return Floor(
            math.log(statistics["candidates"]),
            "every candidate alike",
            "images and texts are not yet told apart: check the temperature, the learning rate and that pairs are true",
        )
