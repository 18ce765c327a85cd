"""Multiple choice: which of a few pairs of text and image belong together? (VCR; ViLBERT's retrieval, section 4.2)"""

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
    """A step: cross entropy of the right one of `options` pairs. The rows of a batch are options, item after item, and
    ``labels["choice"]`` (b,) is True at the right one of each.

    ViLBERT's options: a true pair, and one with another text, another image, and a hard image.
    """

    def __init__(self, model: FusionEncoder, head: RankingHead, options: int = 4):
        super().__init__()
        self.model, self.head, self.options = model, head, options
        self.head.apply(init_transformer)
        self.weights = {"choice": 1.0}
        self.chance_losses = {
            "choice": ChanceLoss(math.log(options), "every option alike", "texts and image are not yet compared")
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
        """Raises ValueError where the rows are no whole items with one right option each."""
        if len(scores) % self.options or not (right.view(-1, self.options).sum(1) == 1).all():
            raise ValueError(f"the rows of a batch are {self.options} options an item, one of them right")
        options, which = scores.view(-1, self.options), right.view(-1, self.options).int().argmax(1)
        found = (options.argmax(1) == which).sum().float()
        return {
            "choice": F.cross_entropy(options, which, reduction="sum") / counts["choice"],
            "choice/accuracy": found.detach() / counts["choice/accuracy"],
        }

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.scores(self.pair(batch)), batch.labels["choice"], counts)
