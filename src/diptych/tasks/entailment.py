"""Visual entailment: does the picture entail the sentence, contradict it, or neither? (SNLI-VE, Xie et al. 2019)"""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Batch
from diptych.modules.init import init_transformer
from diptych.modules.tokens import Pair
from diptych.objectives.cross_entropy import Soft, softened
from diptych.protocols import Floor, Fuses
from diptych.tasks.common import Loss, need, pictured, sample_counts


class Entailment(nn.Module):
    """A step: ``labels["entailment"]`` (b,), one of three classes; `head` makes three logits of the pooled pair."""

    def __init__(self, model: Fuses, head: nn.Module, loss: Loss = F.cross_entropy):
        super().__init__()
        self.model, self.head, self.loss = model, head, loss
        self.head.apply(init_transformer)
        self.weights = {"entailment": 1.0}
        self.floors = {"entailment": Floor(math.log(3), "three classes alike", "text and image are not yet compared")}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "entailment", "entailment/accuracy")

    def pair(self, batch: Batch) -> Pair:
        return self.model.fuse(self.model.encode_text(need(batch.text, "sentence")), pictured(self.model, batch))

    def logits(self, pair: Pair) -> Float[Tensor, "b 3"]:
        return self.head(pair.pooled).float()

    def answer(self, batch: Batch) -> Float[Tensor, "b 3"]:
        """The logits of a batch, which a teacher of this kind says too."""
        return self.logits(self.pair(batch))

    def losses(
        self, logits: Tensor, classes: Tensor, counts: dict[str, Tensor], soft: Soft | None = None
    ) -> dict[str, Tensor]:
        right = (logits.argmax(1) == classes).sum().float()
        return {
            "entailment": softened(self.loss(logits, classes, reduction="sum"), logits, soft) / counts["entailment"],
            "entailment/accuracy": right.detach() / counts["entailment/accuracy"],
        }

    def forward(self, batch: Batch, counts: dict[str, Tensor], soft: Soft | None = None) -> dict[str, Tensor]:
        return self.losses(self.answer(batch), batch.labels["entailment"], counts, soft)
