"""Triplet ranking loss for retrieval, with all or the hardest negatives (VSE++)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diptych.config.objectives import Triplet
from diptych.objectives.contrastive_logits import positive_pairs
from diptych.objectives.definition import Definition, Needs
from diptych.objectives.gather import all_gather_tokens, single_process
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, ComparisonPool, SimilarityModel


@dataclass(frozen=True)
class TripletLoss:
    """Triplet loss with margin in both directions, over the similarities of each sample with the batch of all ranks.

    `hardest_only`: only the most similar negative text and image count; else all of them, summed.
    Source: VSE++, section 3.2, equations 5 and 6. Differs: the mean over pairs; the official code sums (a `weight` of
    the batch size gives its gradients). An image's other captions are not negatives, if the batch has image ids.
    """

    name: str = "triplet"
    weight: float = 1.0
    margin: float = 0.2
    hardest_only: bool = True

    def samples_compared(self, among: ComparisonPool) -> int:
        """The number of candidates of each sample: the batch of all ranks."""
        return among.all_ranks

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = torch.tensor(float(len(views.batch)), device=views.batch.ids.device)
        return {self.name: n, f"{self.name}/accuracy": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        similarity = similarity_model(views).similarity
        (text, first), (image, _) = all_gather_tokens(views.text), all_gather_tokens(views.image)
        positives = positive_pairs(views).mask()
        of_images = similarity(views.image, text).float()
        of_texts = (of_images if single_process() else similarity(image, views.text).float()).T
        correct = positives.gather(1, of_images.argmax(1, keepdim=True))
        return {
            self.name: triplet_loss(of_images, of_texts, self.margin, self.hardest_only, first, positives),
            f"{self.name}/accuracy": correct.sum().float().detach(),
        }

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """Twice the margin with hardest negatives; None with all negatives, because it grows with the batch size."""
        if not self.hardest_only:
            return None
        return ChanceLoss(
            2 * self.margin,
            "equal similarities for all pairs",
            "embeddings collapsed, as hardest negatives cause early in training: train with all negatives first, "
            "use a larger batch, or lower the learning rate",
        )


def similarity_model(views: Views) -> SimilarityModel:
    """The model, checked to define a similarity. Raises ValueError."""
    if not isinstance(views.model, SimilarityModel):
        raise ValueError(f"{type(views.model).__name__} defines no similarity, which the triplet loss needs")
    return views.model


def compared(views: Views) -> Float[Tensor, "b b"]:
    """The model's similarity of every image of this process's batch with every text."""
    return similarity_model(views).similarity(views.image, views.text)


def triplet_loss(
    of_images: Float[Tensor, "b m"],
    of_texts: Float[Tensor, "b m"],
    margin: float,
    hardest_only: bool,
    first: int = 0,
    positives: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, ""]:
    """The triplet loss, summed over images and texts.

    Args:
        of_images, of_texts: similarities of each image with all texts, and of each text with all images; the matching
            candidate of row i is in column `first` + i.
        positives: candidates that are not negatives (default: the matching candidate only).
    """
    own = torch.eye(*of_images.shape, dtype=torch.bool, device=of_images.device).roll(first, 1)
    positives = own if positives is None else positives
    total = of_images.new_zeros(())
    for similarity in (of_images, of_texts):
        costs = (margin + similarity - similarity[own][:, None]).clamp(min=0).masked_fill(positives, 0)
        total = total + (costs.max(1).values if hardest_only else costs.sum(1)).sum()
    return total


DEFINITION = Definition(
    Triplet,
    needs=lambda _: Needs((SimilarityModel,)),
    losses=lambda triplet, _: [
        TripletLoss(weight=triplet.weight, margin=triplet.margin, hardest_only=triplet.hardest_only)
    ],
    trains="retrieval",
)
