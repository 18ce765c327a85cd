"""Recomputation for CrossViT: class tokens of both branches, logits, loss and gradients."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from diptych.batch import Batch, Image
from diptych.models.crossvit.model import CrossViT
from diptych.tasks.classification import Classification
from tests.parity.golden_case import Case, Table, unmasked


class Recomputation:
    def __init__(self, case: Case):
        assert isinstance(case.step, Classification) and isinstance(case.step.model, CrossViT)
        self.case, self.step, self.model = case, case.step, case.step.model

    def table(self) -> Table:
        return unmasked(
            {
                "cls_small": lambda: self.summaries[0],
                "cls_large": lambda: self.summaries[1],
                "logits": lambda: self.model.classify(self.image),
                "loss": self.total,
            }
        )

    @cached_property
    def image(self) -> Image:
        return Image.from_full(self.case.input("image"))

    @cached_property
    def summaries(self) -> list[Tensor]:
        return self.model.class_tokens(self.image)

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        labels = {"class": self.case.input("labels")}
        batch = Batch(0, 0, torch.arange(len(self.image)), image=self.image, labels=labels)
        return self.step(batch, self.step.num_terms(batch))

    def total(self) -> Tensor:
        return self.losses["classification"]
