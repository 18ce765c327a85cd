"""NLVR2 for models whose text meets both photographs at once (BLIP, ALBEF)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.inputs import Batch
from diptych.layers.init import init_transformer
from diptych.models.verbs import FusesSeveral
from diptych.objectives.distillation import Soft, softened
from diptych.step import Floor
from diptych.tasks.single import need, pictured, sample_counts
from diptych.tokens import Pair


class NLVR2AtOnce(nn.Module):
    """A step: cross entropy of ``labels["true"]`` (b,) on the text's first token, after both images."""

    def __init__(self, model: FusesSeveral, width: int):
        super().__init__()
        self.model = model
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        self.head.apply(init_transformer)
        self.weights = {"nlvr2": 1.0}
        self.floors = {"nlvr2": Floor(math.log(2), "true or false alike", "the two images are not yet compared")}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "nlvr2", "nlvr2/accuracy")

    def pair(self, batch: Batch) -> Pair:
        """The text, after it has met the left and the right image."""
        text = self.model.encode_text(need(batch.text, "text"))
        left = pictured(self.model, batch)
        right = self.model.encode_image(need(batch.second, "second image"))  # type: ignore[arg-type]
        return self.model.fuse_several(text, (left, right.in_slot(1)))

    def logits(self, pair: Pair) -> Float[Tensor, "b 2"]:
        return self.head(pair.pooled).float()

    def answer(self, batch: Batch) -> Float[Tensor, "b 2"]:
        """The logits of a batch, which a teacher of this kind says too (tasks.distilled)."""
        return self.logits(self.pair(batch))

    def losses(
        self, logits: Tensor, true: Tensor, counts: dict[str, Tensor], soft: Soft | None = None
    ) -> dict[str, Tensor]:
        right = (logits.argmax(1) == true).sum().float()
        return {
            "nlvr2": softened(F.cross_entropy(logits, true, reduction="sum"), logits, soft) / counts["nlvr2"],
            "nlvr2/accuracy": right.detach() / counts["nlvr2/accuracy"],
        }

    def forward(self, batch: Batch, counts: dict[str, Tensor], soft: Soft | None = None) -> dict[str, Tensor]:
        return self.losses(self.answer(batch), batch.labels["true"], counts, soft)
