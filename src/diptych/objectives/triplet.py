"""The hinge of retrieval: a pair is to be more alike than either of its sides with another, by a margin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diptych.objectives.contrast import positive_pairs
from diptych.objectives.gather import all_gather_tokens, single_process
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, ComparisonPool, SimilarityModel


@dataclass(frozen=True)
class TripletLoss:
    """Triplet loss in both directions over the similarities of the batch (VSE++, section 3.2, equations 5, 6), each sample
    with the candidates of all ranks.

    `hardest`: only the most similar wrong text and image count; else all of them, summed.
    Differs: the mean over pairs; the official code sums (a `weight` of the batch size gives its gradients). An image's other
    captions are not wrong, where the batch tells whose they are (objectives.identity).
    """

    name: str = "triplet"
    weight: float = 1.0
    margin: float = 0.2
    hardest_only: bool = True

    def samples_compared(self, among: ComparisonPool) -> int:
        """Samples that each one is compared with: the batch of all ranks."""
        return among.all_ranks

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = torch.tensor(float(len(views.batch)), device=views.batch.ids.device)
        return {self.name: n, f"{self.name}/accuracy": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        rule = comparing(views).similarity
        (text, first), (image, _) = all_gather_tokens(views.text), all_gather_tokens(views.image)
        belong = positive_pairs(views).mask()
        of_images = rule(text, views.image).float()
        of_texts = (of_images if single_process() else rule(views.text, image).float()).T
        right = belong.gather(1, of_images.argmax(1, keepdim=True))
        return {
            self.name: triplet_loss(of_images, of_texts, self.margin, self.hardest_only, first, belong),
            f"{self.name}/accuracy": right.sum().float().detach(),
        }

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """Twice the margin where only the hardest count; else it grows with the batch."""
        if not self.hardest_only:
            return None
        return ChanceLoss(
            2 * self.margin,
            "loss of every pair equally alike",
            "all embeddings have fallen together, as hardest negatives do early: train with all negatives first, "
            "use a larger batch, or lower the learning rate",
        )


def comparing(views: Views) -> SimilarityModel:
    """The model, which must have a similarity of its own. Raises ValueError."""
    if not isinstance(views.model, SimilarityModel):
        raise ValueError(f"{type(views.model).__name__} has no similarity of its own")
    return views.model


def compared(views: Views) -> Float[Tensor, "b b"]:
    """Every image of this process's batch with every text, by the model's own rule."""
    return comparing(views).similarity(views.text, views.image)


def triplet_loss(
    of_images: Float[Tensor, "b m"], of_texts: Float[Tensor, "b m"], margin: float, hardest_only: bool, first: int = 0,
    belong: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, ""]:  # fmt: skip
    """Summed over images with every text and texts with every image; a sample's own is the candidate `first` behind its
    row, and no candidate of those that `belong` to it is wrong.
    """
    own = torch.eye(*of_images.shape, dtype=torch.bool, device=of_images.device).roll(first, 1)
    right = own if belong is None else belong
    total = of_images.new_zeros(())
    for similarity in (of_images, of_texts):
        costs = (margin + similarity - similarity[own][:, None]).clamp(min=0).masked_fill(right, 0)
        total = total + (costs.max(1).values if hardest_only else costs.sum(1)).sum()
    return total
