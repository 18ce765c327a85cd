"""Imitation: an image encoder learns to see what a trained CNN sees, patch by patch and as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.objectives.views import Views
from diptych.protocols import Floor


@dataclass(frozen=True)
class GridImitation:
    """1 − cosine between each patch's token, read by head `grid`, and the guide's feature at the same place."""

    name: str = "grid"
    weight: float = 1.0

    def counts(self, views: Views) -> dict[str, Tensor]:
        cells = views.given_image.extents(views.guide.stride).prod(1)
        kept = cells if views.most_patches is None else cells.clamp(max=views.most_patches)
        return {self.name: kept.sum().float()}

    def totals(self, views: Views) -> dict[str, Tensor]:
        patches, grid = views.image.by_span(name="patches"), views.guidance.grid
        if patches.layout.spans[0].grid != grid.shape[1:3]:
            raise ValueError(
                f"patches of another size than the guide's {views.guide.stride} pixels cannot imitate its grid"
            )
        seen = grid.flatten(1, 2)[patches.real]
        guess = views.head("grid", patches.pack().values)
        return {self.name: (1 - F.cosine_similarity(guess.float(), seen, dim=1)).sum()}

    def floor(self, statistics: Mapping[str, float]) -> Floor | None:
        """None: the cosine to the mean feature is a fact of the guide and the pictures, not known beforehand."""
        return None


@dataclass(frozen=True)
class ClassImitation:
    """Cross entropy between the class token, read by head `classes`, and the guide's class distribution (Hinton et al. 2015)."""

    name: str = "classes"
    weight: float = 0.5
    temperature: float = 2.0

    def counts(self, views: Views) -> dict[str, Tensor]:
        n = torch.tensor(float(len(views.given_image)), device=views.given_image.pixels.device)
        return {self.name: n, f"{self.name}/agreement": n}

    def totals(self, views: Views) -> dict[str, Tensor]:
        seen = views.guidance.classes
        guess = views.head("classes", views.image.first()).float()
        soft = (seen / self.temperature).softmax(1)
        return {
            self.name: F.cross_entropy(guess / self.temperature, soft, reduction="sum"),
            f"{self.name}/agreement": (guess.argmax(1) == seen.argmax(1)).sum().float().detach(),
        }

    def floor(self, statistics: Mapping[str, float]) -> Floor:
        return Floor(math.log(1000), "uniform over the guide's classes", "the class token has learned nothing yet")
