"""Grounding of referring expressions: the detected region that a text refers to (RefCOCO+; ViLBERT, section 4.2)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Batch
from diptych.modules.heads import GroundingHead
from diptych.modules.init import init_transformer
from diptych.modules.tokens import FusedTokens
from diptych.protocols import ChanceLoss, FusionEncoder
from diptych.tasks.common import encode_images, required, sample_counts

PADDING_SCORE = -10000.0  # added to the scores of padding


class Grounding(nn.Module):
    """A training step: binary cross entropy of ``labels["regions"]`` (b, n), summed over regions.

    A region's label is its IoU with the true box if that is at least 0.5, else 0. The accuracy is the share of texts
    whose top region has an IoU of at least 0.5.
    """

    def __init__(self, model: FusionEncoder, head: GroundingHead):
        super().__init__()
        self.model, self.head = model, head
        self.head.apply(init_transformer)
        self.weights = {"grounding": 1.0}
        self.chance_losses: dict[str, ChanceLoss] = {}  # the share of overlapping regions depends on the data

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "grounding", "grounding/accuracy")

    def pair(self, batch: Batch) -> FusedTokens:
        text = self.model.encode_text(required(batch.text, "expression"))
        return self.model.fuse(text, encode_images(self.model, batch))

    def scores(self, pair: FusedTokens) -> Float[Tensor, "b n"]:
        """A score for every region; at padding PADDING_SCORE is added."""
        scores = self.head(pair.image.to_padded()).float()
        return scores + PADDING_SCORE * (~pair.image.mask).float()

    def losses(self, scores: Tensor, overlap: Tensor, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        right = (overlap.gather(1, scores.argmax(1, keepdim=True)) >= 0.5).sum().float()
        loss = F.binary_cross_entropy_with_logits(scores, overlap, reduction="sum")
        return {
            "grounding": loss / counts["grounding"],
            "grounding/accuracy": right.detach() / counts["grounding/accuracy"],
        }

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.scores(self.pair(batch)), batch.labels["regions"], counts)
