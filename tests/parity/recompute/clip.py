"""Recomputation for CLIP: image and text features, their logits, the loss and its gradients."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from diptych.batch import Batch, Image
from diptych.modules.heads import ITCHead
from diptych.objectives.contrastive_logits import contrast_logits
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.views import Views
from tests.parity.golden_case import Case, Recomputed, Table
from tests.parity.recompute.inputs import padded, text_to_largest


class Recomputation:
    """OpenAI's code returns projected features, open_clip's normalises them."""

    def __init__(self, case: Case):
        assert isinstance(case.step, Pretraining)
        self.case, self.step = case, case.step
        self.unit = "vision_cfg" in case.config

    def table(self) -> Table:
        return {
            "image_features": lambda: Recomputed(self.features("image")),
            "text_features": lambda: Recomputed(self.features("text")),
            "text_tokens": lambda: padded(self.views.text),
            "logits_per_image": lambda: Recomputed(contrast_logits(self.views, "itc").to_text),
            "logits_per_text": lambda: Recomputed(contrast_logits(self.views, "itc").to_image),
            "logit_scale": lambda: Recomputed(self.contrast.scale()),
            "loss": lambda: Recomputed(self.total()),
        }

    @property
    def contrast(self) -> ITCHead:
        head = self.step.heads["itc"]
        assert isinstance(head, ITCHead)
        return head

    def features(self, side: str) -> Tensor:
        if self.unit:
            return getattr(self.views.features("itc"), side)
        pooled = self.views.image_pooled if side == "image" else self.views.text_pooled
        return getattr(self.contrast, side)(pooled[0])

    @cached_property
    def batch(self) -> Batch:
        image, text = Image.from_full(self.case.input("image")), text_to_largest(self.case.input("text"))
        return Batch(0, 0, torch.arange(len(text)), image=image, text=text)

    @cached_property
    def views(self) -> Views:
        return self.step.views(self.batch)

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        return self.step.losses(self.views, self.step.num_terms(self.batch))

    def total(self) -> Tensor:
        return self.losses["itc"]
