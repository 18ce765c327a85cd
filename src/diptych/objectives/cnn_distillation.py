"""Distillation of a frozen CNN into an image encoder: its feature map and its class distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.config.objectives import ClassDistillation, GridDistillation
from diptych.encoders.efficientnet import FrozenCNN
from diptych.objectives.definition import Definition, Needs
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, PatchEncoder


@dataclass(frozen=True)
class GridDistillationLoss:
    """1 − cosine between each patch's token, projected by head "grid", and the CNN's feature of the same cell."""

    name: str = "grid_distillation"
    weight: float = 1.0

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        cells = views.image_input.extents(views.teacher_network.stride).prod(1)
        if views.max_patches is not None:
            cells = cells.clamp(max=views.max_patches)
        return {self.name: cells.sum().float()}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        patches, grid = views.image.select(name="patches"), views.teacher_features.grid
        if patches.layout.spans[0].grid != grid.shape[1:3]:
            raise ValueError(
                f"expected patches of {views.teacher_network.stride} pixels, the stride of the CNN, in a grid of "
                f"{tuple(grid.shape[1:3])}, got {patches.layout.spans[0].grid}: change the model's patch_size"
            )
        target = grid.flatten(1, 2)[patches.mask]
        predicted = views.head("grid", patches.pack().values)
        return {self.name: (1 - F.cosine_similarity(predicted.float(), target, dim=1)).sum()}

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """None: the cosine to the mean feature depends on the CNN and the images, and is not known in advance."""
        return None


@dataclass(frozen=True)
class ClassDistillationLoss:
    """Cross entropy between the class token's logits (head "classes") and the CNN's class distribution.

    Source: Hinton et al. 2015.
    """

    name: str = "class_distillation"
    weight: float = 0.5
    temperature: float = 2.0

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = torch.tensor(float(len(views.image_input)), device=views.image_input.pixels.device)
        return {self.name: n, f"{self.name}/agreement": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        teacher_logits = views.teacher_features.classes
        logits = views.head("classes", views.image.first()).float()
        targets = (teacher_logits / self.temperature).softmax(1)
        return {
            self.name: F.cross_entropy(logits / self.temperature, targets, reduction="sum"),
            f"{self.name}/agreement": (logits.argmax(1) == teacher_logits.argmax(1)).sum().float().detach(),
        }

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss:
        return ChanceLoss(
            math.log(FrozenCNN.num_classes), "uniform over the CNN's classes", "the class token has learned nothing yet"
        )


def add_distillation_heads(settings: Any, model: Any, heads: nn.ModuleDict) -> None:
    """Adds the heads of both distillation losses, so that runs with one or both have the same weights."""
    if "grid" not in heads:
        dim = getattr(model, "image_dim", model.dim)
        heads["grid"], heads["classes"] = nn.Linear(dim, FrozenCNN.width), nn.Linear(dim, FrozenCNN.num_classes)


GRID_DEFINITION = Definition(
    GridDistillation,
    needs=lambda _: Needs((PatchEncoder,), "grid", text=False, patch_grid=True, frozen_cnn=True),
    losses=lambda grid, _: [GridDistillationLoss(weight=grid.weight)],
    add_heads=add_distillation_heads,
)
CLASS_DEFINITION = Definition(
    ClassDistillation,
    needs=lambda _: Needs((PatchEncoder,), "classes", text=False, patch_grid=True, frozen_cnn=True),
    losses=lambda classes, _: [ClassDistillationLoss(weight=classes.weight)],
    add_heads=add_distillation_heads,
)
