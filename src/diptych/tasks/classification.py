"""Image classification: one class per image."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from diptych.batch import Batch
from diptych.protocols import ChanceLoss, ImageClassifier
from diptych.tasks.common import required, sample_counts


class Classification(nn.Module):
    """A training step: cross entropy of the class indices ``labels["class"]`` (b,)."""

    def __init__(self, model: ImageClassifier, num_classes: int):
        super().__init__()
        self.model = model
        self.weights = {"classification": 1.0}
        self.chance_losses = {
            "classification": ChanceLoss(math.log(num_classes), "uniform over classes", "the image is not used yet")
        }

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "classification", "classification/accuracy")

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.model.classify(required(batch.image, "image")).float()
        return self.losses(logits, batch.labels["class"], counts)

    def losses(self, logits: Tensor, classes: Tensor, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        right = (logits.argmax(1) == classes).sum().float()
        return {
            "classification": F.cross_entropy(logits, classes, reduction="sum") / counts["classification"],
            "classification/accuracy": right.detach() / counts["classification/accuracy"],
        }
