"""The hinge of retrieval: a pair is to be more alike than either of its sides with another, by a margin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diptych.objectives.contrast import identities
from diptych.objectives.gather import alone, gathered_tokens
from diptych.objectives.views import Views
from diptych.protocols import Among, Compares, Floor


@dataclass(frozen=True)
class Hinge:
    """Triplet loss in both directions over the similarities of the batch (VSE++, section 3.2, equations 5, 6), each sample
    with the candidates of all ranks.

    `hardest`: only the most similar wrong text and image count; else all of them, summed.
    Differs: the mean over pairs; the official code sums (a `weight` of the batch size gives its gradients). An image's other
    captions are not wrong, where the batch tells whose they are (objectives.identity).
    """

    name: str = "hinge"
    weight: float = 1.0
    margin: float = 0.2
    hardest: bool = True

    def samples_compared(self, among: Among) -> int:
        """Samples that each one is compared with: the batch of all ranks."""
        return among.everywhere

    def counts(self, views: Views) -> dict[str, Tensor]:
        n = torch.tensor(float(len(views.batch)), device=views.batch.ids.device)
        return {self.name: n, f"{self.name}/accuracy": n}

    def totals(self, views: Views) -> dict[str, Tensor]:
        rule = comparing(views).similarity
        (text, first), (image, _) = gathered_tokens(views.text), gathered_tokens(views.image)
        belong = identities(views).belong()
        of_images = rule(text, views.image).float()
        of_texts = (of_images if alone() else rule(views.text, image).float()).T
        right = belong.gather(1, of_images.argmax(1, keepdim=True))
        return {
            self.name: hinge(of_images, of_texts, self.margin, self.hardest, first, belong),
            f"{self.name}/accuracy": right.sum().float().detach(),
        }

    def floor(self, statistics: Mapping[str, float]) -> Floor | None:
        """Twice the margin where only the hardest count; else it grows with the batch."""
        if not self.hardest:
            return None
        return Floor(
            2 * self.margin,
            "loss of every pair equally alike",
            "all embeddings have fallen together, as hardest negatives do early: train with all negatives first, "
            "use a larger batch, or lower the learning rate",
        )


def comparing(views: Views) -> Compares:
    """The model, which must have a similarity of its own. Raises ValueError."""
    if not isinstance(views.model, Compares):
        raise ValueError(f"{type(views.model).__name__} has no similarity of its own")
    return views.model


def compared(views: Views) -> Float[Tensor, "b b"]:
    """Every image of this process's batch with every text, by the model's own rule."""
    return comparing(views).similarity(views.text, views.image)


def hinge(
    of_images: Float[Tensor, "b m"], of_texts: Float[Tensor, "b m"], margin: float, hardest: bool, first: int = 0,
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
        total = total + (costs.max(1).values if hardest else costs.sum(1)).sum()
    return total
