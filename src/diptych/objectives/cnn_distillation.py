"""Imitation: an image encoder learns to see what a trained CNN sees, patch by patch and as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss


@dataclass(frozen=True)
class GridDistillation:
    """1 − cosine between each patch's token, read by head `grid`, and the guide's feature at the same place."""

    name: str = "grid_distillation"
    weight: float = 1.0

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        cells = views.image_input.extents(views.teacher_network.stride).prod(1)
        kept = cells if views.max_patches is None else cells.clamp(max=views.max_patches)
        return {self.name: kept.sum().float()}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        patches, grid = views.image.select(name="patches"), views.teacher_features.grid
        if patches.layout.spans[0].grid != grid.shape[1:3]:
            raise ValueError(
                f"patches of another size than the guide's {views.teacher_network.stride} pixels cannot imitate its grid"
            )
        seen = grid.flatten(1, 2)[patches.mask]
        guess = views.head("grid", patches.pack().values)
        return {self.name: (1 - F.cosine_similarity(guess.float(), seen, dim=1)).sum()}

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """None: the cosine to the mean feature is a fact of the guide and the pictures, not known beforehand."""
        return None


@dataclass(frozen=True)
class ClassDistillation:
    """Cross entropy between the class token, read by head `classes`, and the guide's class distribution (Hinton et al. 2015)."""

    name: str = "class_distillation"
    weight: float = 0.5
    temperature: float = 2.0

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = torch.tensor(float(len(views.image_input)), device=views.image_input.pixels.device)
        return {self.name: n, f"{self.name}/agreement": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        seen = views.teacher_features.classes
        guess = views.head("classes", views.image.first()).float()
        soft = (seen / self.temperature).softmax(1)
        return {
            self.name: F.cross_entropy(guess / self.temperature, soft, reduction="sum"),
            f"{self.name}/agreement": (guess.argmax(1) == seen.argmax(1)).sum().float().detach(),
        }

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss:
        return ChanceLoss(math.log(1000), "uniform over the guide's classes", "the class token has learned nothing yet")
