"""The hinge of retrieval: a pair is to be more alike than either of its sides with another, by a margin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diptych.models.verbs import Compares
from diptych.objectives.views import Views
from diptych.step import Floor


@dataclass(frozen=True)
class Hinge:
    """Triplet loss in both directions over the similarities of this process's batch (VSE++, section 3.2, equations 5, 6).

    `hardest`: only the most similar wrong text and image count; else all of them, summed.
    Differs: the mean over pairs; the official code sums (a `weight` of the batch size gives its gradients).
    """

    name: str = "hinge"
    weight: float = 1.0
    margin: float = 0.2
    hardest: bool = True

    def counts(self, views: Views) -> dict[str, Tensor]:
        n = torch.tensor(float(len(views.batch)), device=views.batch.ids.device)
        return {self.name: n, f"{self.name}/accuracy": n}

    def totals(self, views: Views) -> dict[str, Tensor]:
        similarity = compared(views).float()
        own = torch.arange(len(similarity), device=similarity.device)
        return {
            self.name: hinge(similarity, self.margin, self.hardest),
            f"{self.name}/accuracy": (similarity.argmax(1) == own).sum().float().detach(),
        }

    def floor(self, statistics: Mapping[str, float]) -> Floor | None:
        """Twice the margin where only the hardest count; else it grows with the batch."""
        if not self.hardest:
            return None
        return Floor(
            2 * self.margin,
            "every pair equally alike",
            "all embeddings have fallen together, as hardest negatives do early: train with all negatives first, "
            "use a larger batch, or lower the learning rate",
        )


def compared(views: Views) -> Float[Tensor, "b b"]:
    """Every image of the batch with every text, by the model's own rule."""
    if not isinstance(views.model, Compares):
        raise ValueError(f"{type(views.model).__name__} has no similarity of its own")
    return views.model.similarity(views.text, views.image)


def hinge(similarity: Float[Tensor, "b b"], margin: float, hardest: bool) -> Float[Tensor, ""]:
    """Summed over pairs and both directions; true pairs stand on the diagonal."""
    true = similarity.diag()
    itself = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    texts = (margin + similarity - true[:, None]).clamp(min=0).masked_fill(itself, 0)
    images = (margin + similarity - true[None]).clamp(min=0).masked_fill(itself, 0)
    if hardest:
        texts, images = texts.max(1).values, images.max(0).values
    return texts.sum() + images.sum()
