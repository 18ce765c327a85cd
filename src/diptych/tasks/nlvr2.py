"""NLVR2: is this sentence true of these two photographs? (Suhr et al. 2019)"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.heads import Classify
from diptych.inputs import Batch
from diptych.layers.init import init_transformer
from diptych.models.verbs import Fuses
from diptych.step import Floor
from diptych.tasks.single import Loss, need, pictured, sample_counts
from diptych.tokens import Pair


class NLVR2(nn.Module):
    """A step for models that fuse the text with each image by itself (ViLT, VLMo, BEiT-3): ``labels["true"]`` (b,).

    `width`: of the two summaries that the head reads side by side; `head`: in place of ViLT's.
    """

    def __init__(self, model: Fuses, width: int, head: nn.Module | None = None, loss: Loss = F.cross_entropy):
        super().__init__()
        self.model, self.loss = model, loss
        self.head = head or Classify(2 * width, 2 * width, 2)
        self.head.apply(init_transformer)
        self.weights = {"nlvr2": 1.0}
        self.floors = {"nlvr2": Floor(math.log(2), "true or false alike", "the two images are not yet compared")}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "nlvr2", "nlvr2/accuracy")

    def pairs(self, batch: Batch) -> tuple[Pair, Pair]:
        """The text with the left image, and with the right one."""
        text = self.model.encode_text(need(batch.text, "text"))
        left = pictured(self.model, batch)
        right = self.model.encode_image(need(batch.second, "second image"))  # type: ignore[arg-type]
        return self.model.fuse(text, left), self.model.fuse(text, right.in_slot(1))

    def logits(self, pairs: tuple[Pair, Pair]) -> Float[Tensor, "b 2"]:
        return self.head(torch.cat([pair.pooled for pair in pairs], 1)).float()

    def losses(self, logits: Tensor, true: Tensor, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        right = (logits.argmax(1) == true).sum().float()
        return {
            "nlvr2": self.loss(logits, true, reduction="sum") / counts["nlvr2"],
            "nlvr2/accuracy": right.detach() / counts["nlvr2/accuracy"],
        }

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.logits(self.pairs(batch)), batch.labels["true"], counts)
