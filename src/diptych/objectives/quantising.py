"""Learning visual tokens: a picture told by codes is to be told well enough for what a teacher sees in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.layers.codebook import Asked
from diptych.models.verbs import Quantises
from diptych.objectives.gather import gathered
from diptych.objectives.views import Views
from diptych.step import Floor

LEAST_USED = 0.2  # of the codebook; below that a tokenizer has failed


@dataclass(frozen=True)
class CodedFeatures:
    """1 − cosine between what is told of each patch and what the guide sees there, and `commitment` times the distance of
    the patch's vector from its code (BEiT v2, section 2.2, equation 2).

    In training the codebook learns too, by the batch of all ranks: once a micro-batch.
    """

    name: str = "features"
    weight: float = 1.0
    commitment: float = 1.0

    def counts(self, views: Views) -> dict[str, Tensor]:
        n = views.given_image.extents(views.guide.stride).prod(1).sum().float()
        return {self.name: n, f"{self.name}/apart": n}

    def totals(self, views: Views) -> dict[str, Tensor]:
        model, vectors, grid = quantising(views), views.image, views.guidance.grid
        if vectors.layout.spans[0].grid != grid.shape[1:3]:
            raise ValueError(
                f"patches are to be of the guide's {views.guide.stride} pixels, to tell what it sees there"
            )
        quantised, codes = model.quantise(vectors)
        told = model.tell(quantised).pack().values.float()
        apart = 1 - F.cosine_similarity(told, grid.flatten(1, 2)[vectors.real].float(), dim=1)
        x = vectors.pack().values
        distance = (model.codebook.vectors[codes] - x).square().mean(1)
        if model.training:
            first = views.draws.order(vectors) == 0  # one patch of each image, which a dead code may become
            asked = (gathered(part[None])[0].sum(0) for part in model.codebook.asked(x.detach(), codes))
            model.codebook.learn(Asked(*asked), gathered(vectors.rows(first).detach())[0])
        return {
            self.name: apart.sum() + self.commitment * distance.sum(),
            f"{self.name}/apart": apart.sum().detach(),
        }

    def floor(self, statistics: Mapping[str, float]) -> Floor | None:
        """None: the cosine to the mean feature is a fact of the guide and the pictures, not known beforehand."""
        return None


@dataclass(frozen=True)
class UnusedCodes:
    """The share of the codebook that nothing asked for of late. It is watched, not learned: nothing of it has a gradient."""

    name: str = "unused"
    weight: float = 0.0

    def counts(self, views: Views) -> dict[str, Tensor]:
        return {self.name: torch.tensor(float(len(views.batch)), device=views.batch.ids.device)}

    def totals(self, views: Views) -> dict[str, Tensor]:
        return {self.name: quantising(views).codebook.unused() * len(views.batch)}

    def floor(self, statistics: Mapping[str, float]) -> Floor:
        return Floor(
            1 - LEAST_USED,
            "least use of a codebook",
            "the codebook has collapsed: fewer than a fifth of the codes are asked for, and what they name is too little; "
            "take fewer or shorter codes, a larger batch, or more steps",
        )


def quantising(views: Views) -> Quantises:
    """The model, which must know codes. Raises ValueError."""
    if not isinstance(views.model, Quantises):
        raise ValueError(f"{type(views.model).__name__} is no tokenizer of images")
    return views.model
