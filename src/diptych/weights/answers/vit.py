"""What of a ViT golden can be recomputed: tokens, logits and resized positions of each image, loss and gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diptych.inputs import Batch, Image
from diptych.models.vit import ViT
from diptych.tasks.classification import Classification
from diptych.weights.golden import Answer, Case


class Answers:
    """Images of other sizes carry a suffix: in.image_large answers out.logits_large."""

    def __init__(self, case: Case):
        self.case = case
        self.step: Any = case.step
        self.model: ViT = self.step.model
        self.table = {"tokens": self.tokens, "logits": self.logits, "pos_embed": self.positions}

    def find(self, name: str) -> Callable[[], Answer]:
        if name == "loss":
            return lambda: Answer(self.losses["classification"])
        what, suffix = next(((w, name.removeprefix(w)) for w in self.table if name.startswith(w)), ("", ""))
        image = Image.whole(self.case.input(f"image{suffix}")) if what else None
        if image is None:
            raise LookupError("no one knows how")
        return lambda: Answer(self.table[what](image))

    def tokens(self, image: Image) -> Tensor:
        return self.model.encode_image(image).canvas()

    def logits(self, image: Image) -> Tensor:
        return self.model.classify(image)

    def positions(self, image: Image) -> Tensor:
        patches = self.model.patches
        extents = image.sizes[:1] // patches.patch
        cells = patches.positions(extents, *extents[0].tolist())
        return torch.cat([patches.position[:, :1], cells], 1)

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        image, labels = Image.whole(self.case.input("image")), self.case.input("labels")
        if not isinstance(self.step, Classification):
            raise LookupError("this checkpoint has no classifier")
        batch = Batch(0, 0, torch.arange(len(image)), image=image, labels={"class": labels})
        return self.step(batch, self.step.counts(batch))

    def total(self) -> Tensor:
        return self.losses["classification"]
