"""Multiple choice: the matching pair of text and image among a few (VCR; ViLBERT's retrieval, section 4.2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diptych.batch import Batch
from diptych.modules.heads import RankingHead
from diptych.modules.init import init_transformer
from diptych.modules.tokens import FusedTokens
from diptych.protocols import ChanceLoss, FusionEncoder
from diptych.tasks.common import encode_images, required


class MultipleChoice(nn.Module):
    """A training step: cross entropy over the `options` pairs of each item.

    The rows of a batch are the options, item after item; ``labels["choice"]`` (b,) is True at the right option of each
    item. ViLBERT's options: the true pair, and pairs with another text, another image and a hard negative image.
    """

    def __init__(self, model: FusionEncoder, head: RankingHead, options: int = 4):
        super().__init__()
        self.model, self.head, self.options = model, head, options
        self.head.apply(init_transformer)
        self.weights = {"choice": 1.0}
        self.chance_losses = {
            "choice": ChanceLoss(math.log(options), "uniform over options", "texts and image are not compared yet")
        }

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        n = torch.tensor(len(batch) / self.options, device=batch.ids.device)
        return {"choice": n, "choice/accuracy": n}

    def pair(self, batch: Batch) -> FusedTokens:
        return self.model.fuse(self.model.encode_text(required(batch.text, "text")), encode_images(self.model, batch))

    def scores(self, pair: FusedTokens) -> Float[Tensor, " b"]:
        return self.head(pair.pooled).float()

    def losses(
        self, scores: Float[Tensor, " b"], right: Bool[Tensor, " b"], counts: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Raises ValueError unless the rows are complete items with one right option each."""
        if len(scores) % self.options or not (right.view(-1, self.options).sum(1) == 1).all():
            raise ValueError(
                f"expected {self.options} rows per item, one of them right; got a batch of {len(scores)} rows"
            )
        options, which = scores.view(-1, self.options), right.view(-1, self.options).int().argmax(1)
        right_items = (options.argmax(1) == which).sum().float()
        return {
            "choice": F.cross_entropy(options, which, reduction="sum") / counts["choice"],
            "choice/accuracy": right_items.detach() / counts["choice/accuracy"],
        }

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.scores(self.pair(batch)), batch.labels["choice"], counts)
