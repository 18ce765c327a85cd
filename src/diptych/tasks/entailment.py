"""Visual entailment: an image entails a sentence, contradicts it, or neither (SNLI-VE, Xie et al. 2019)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Batch
from diptych.modules.init import init_transformer
from diptych.modules.tokens import FusedTokens
from diptych.objectives.cross_entropy import SoftTargets, distilled_loss
from diptych.protocols import ChanceLoss, FusionEncoder
from diptych.tasks.common import Loss, encode_images, required, sample_counts


class Entailment(nn.Module):
    """A training step: `loss` of the classes ``labels["entailment"]`` (b,); `head` maps pooled pairs to 3 logits."""

    def __init__(self, model: FusionEncoder, head: nn.Module, loss: Loss = F.cross_entropy):
        super().__init__()
        self.model, self.head, self.loss = model, head, loss
        self.head.apply(init_transformer)
        self.weights = {"entailment": 1.0}
        self.chance_losses = {
            "entailment": ChanceLoss(math.log(3), "uniform over three classes", "text and image are not compared yet")
        }

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "entailment", "entailment/accuracy")

    def pair(self, batch: Batch) -> FusedTokens:
        text = self.model.encode_text(required(batch.text, "sentence"))
        return self.model.fuse(text, encode_images(self.model, batch))

    def logits(self, pair: FusedTokens) -> Float[Tensor, "b 3"]:
        return self.head(pair.pooled).float()

    def batch_logits(self, batch: Batch) -> Float[Tensor, "b 3"]:
        """The logits of a batch; a momentum teacher computes them too (see `MomentumDistilled`)."""
        return self.logits(self.pair(batch))

    def losses(
        self, logits: Tensor, classes: Tensor, counts: dict[str, Tensor], soft: SoftTargets | None = None
    ) -> dict[str, Tensor]:
        loss = distilled_loss(self.loss(logits, classes, reduction="sum"), logits, soft)
        right = (logits.argmax(1) == classes).sum().float()
        return {
            "entailment": loss / counts["entailment"],
            "entailment/accuracy": right.detach() / counts["entailment/accuracy"],
        }

    def forward(self, batch: Batch, counts: dict[str, Tensor], soft: SoftTargets | None = None) -> dict[str, Tensor]:
        return self.losses(self.batch_logits(batch), batch.labels["entailment"], counts, soft)
