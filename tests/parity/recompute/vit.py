"""Recomputation for ViT: tokens, logits and resized positions of each image, loss and gradients."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from diptych.batch import Batch, Image
from diptych.models.vit.model import ViT
from diptych.tasks.classification import Classification
from tests.parity.golden_case import Case, Table, unmasked


class Recomputation:
    """Images of other sizes have a suffix: out.logits_large is computed from in.image_large."""

    def __init__(self, case: Case):
        self.case = case
        self.step: Any = case.step
        self.model: ViT = self.step.model

    def table(self) -> Table:
        makers = {"tokens": self.tokens, "logits": self.logits, "pos_embed": self.positions}
        suffixes = [name.removeprefix("image") for name in self.case.inputs if name.startswith("image")]
        of_images = {f"{what}{s}": partial(make, s) for what, make in makers.items() for s in suffixes}
        return unmasked({**of_images, "loss": lambda: self.losses["classification"]})

    def image(self, suffix: str) -> Image:
        return Image.from_full(self.case.input(f"image{suffix}"))

    def tokens(self, suffix: str) -> Tensor:
        return self.model.encode_image(self.image(suffix)).to_padded()

    def logits(self, suffix: str) -> Tensor:
        return self.model.classify(self.image(suffix))

    def positions(self, suffix: str) -> Tensor:
        patches = self.model.patches
        extents = self.image(suffix).sizes[:1] // patches.patch_size
        cells = patches.positions(extents, *extents[0].tolist())
        return torch.cat([patches.position[:, :1], cells], 1)

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        image, labels = self.image(""), self.case.input("labels")
        if not isinstance(self.step, Classification):
            raise LookupError("this checkpoint has no classifier")
        batch = Batch(0, 0, torch.arange(len(image)), image=image, labels={"class": labels})
        return self.step(batch, self.step.num_terms(batch))

    def total(self) -> Tensor:
        return self.losses["classification"]
