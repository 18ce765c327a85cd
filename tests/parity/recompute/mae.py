"""Recomputation for MAE: the order of patches, latents, predicted pixels, and the loss on both targets."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from diptych.batch import Batch, Image
from diptych.objectives.mim import MIMLoss, Reconstruction, patch_pixels, reconstructor
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import FixedChoices
from diptych.objectives.views import Views
from tests.parity.golden_case import Case, Table, unmasked


class Recomputation:
    def __init__(self, case: Case):
        assert isinstance(case.step, Pretraining)
        self.case, self.step = case, case.step

    def table(self) -> Table:
        return unmasked(
            {
                "ids_restore": lambda: self.reconstruction.order[:, 1:],  # without the class token
                "latent": self.latent,
                "pred": lambda: self.reconstruction.predicted.to_padded(),
                "patches": lambda: patch_pixels(self.views.image_input, reconstructor(self.views).patch_size),
                "loss": lambda: self.loss(False),
                "loss_norm_pix": self.total,
            }
        )

    @cached_property
    def objective(self) -> MIMLoss:
        (objective,) = self.step.objectives
        assert isinstance(objective, MIMLoss)
        return replace(objective, ratio=round(self.case.input("mask_ratio").item(), 6))  # saved as float32

    @cached_property
    def views(self) -> Views:
        image = Image.from_full(self.case.input("image"))
        draws = FixedChoices(patch_noise=self.case.input("noise"))
        return self.step.views(Batch(0, 0, torch.arange(len(image)), image=image), draws)

    @cached_property
    def reconstruction(self) -> Reconstruction:
        return self.objective.reconstruction(self.views)

    def latent(self) -> Tensor:
        """The class token, then the visible patches in the random order of the official code."""
        visible, order = self.reconstruction.visible.to_padded(), self.reconstruction.order[:, 1:].argsort(1)
        num_visible = int(self.reconstruction.visible.select(name="patches").mask[0].sum())
        patches = visible[:, 1:].gather(1, order[:, :num_visible, None].expand(-1, -1, visible.shape[2]))
        return torch.cat([visible[:, :1], patches], 1)

    def loss(self, normalise: bool) -> Tensor:
        objective = replace(self.objective, normalise=normalise)
        return objective.loss_sums(self.views)["mim"] / objective.num_terms(self.views)["mim"]

    @cached_property
    def normalised(self) -> Tensor:
        return self.loss(True)

    def total(self) -> Tensor:
        return self.normalised
