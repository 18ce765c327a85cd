"""Learning visual tokens: a picture told by codes is to be told well enough for what a teacher sees in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.modules.codebook import CodeUsage
from diptych.objectives.gather import all_gather
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, VectorQuantizer

LEAST_USED = 0.2  # of the codebook; below that a tokenizer has failed


@dataclass(frozen=True)
class VQKD:
    """1 − cosine between what is told of each patch and what the guide sees there, and `commitment` times the distance of
    the patch's vector from its code (BEiT v2, section 2.2, equation 2; weight 1, and a mean over the vector's width, in the
    official code).

    In training the codebook learns too, by the batch of all ranks: once a micro-batch.

    Differs: what the guide sees, as a unit vector, is told from the mean of such. A CNN's features are never negative and share a
    mean, and whoever tells that alone has the easiest part of a cosine. Unit vectors first: from the mean of what they were
    before, all that is faint lies in one direction, which is as easy.
    """

    name: str = "vqkd"
    weight: float = 1.0
    commitment: float = 1.0

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = views.image_input.extents(views.teacher_network.stride).prod(1).sum().float()
        return {self.name: n, f"{self.name}/apart": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        model, vectors, grid = quantising(views), views.image, views.teacher_features.grid
        if vectors.layout.spans[0].grid != grid.shape[1:3]:
            raise ValueError(
                f"patches are to be of the guide's {views.teacher_network.stride} pixels, to tell what it sees there"
            )
        x, seen = vectors.pack().values, F.normalize(grid.flatten(1, 2)[vectors.mask].float(), dim=1)
        if model.training:
            model.feature_mean.update(*(_of_all(part) for part in (seen.sum(0), seen.new_tensor(len(seen)))))
            if not model.codebook.begun:
                model.codebook.initialize(all_gather(x.detach())[0])
        quantised, codes = model.quantize(vectors)
        told = model.decode_codes(quantised).pack().values.float()
        apart = 1 - F.cosine_similarity(told, seen - model.feature_mean.mean, dim=1)
        distance = (model.codebook.vectors[codes] - x).square().mean(1)
        if model.training:
            first = views.draws.order_patches(vectors) == 0  # one patch of each image, which a dead code may become
            asked = (_of_all(part) for part in model.codebook.usage(x.detach(), codes))
            model.codebook.update(CodeUsage(*asked), all_gather(vectors.gather(first).detach())[0])
        return {
            self.name: apart.sum() + self.commitment * distance.sum(),
            f"{self.name}/apart": apart.sum().detach(),
        }

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """What is told from the mean, by one that knows nothing but the mean: a cosine of 0."""
        return ChanceLoss(
            1.0,
            "distance of what is seen from its mean",
            "the codes tell nothing of a patch; likely too short a run, or a codebook that has collapsed (see `unused`)",
        )


@dataclass(frozen=True)
class UnusedCodes:
    """The share of the codebook that nothing asked for in its last `patience` batches. It is watched, not learned: nothing of
    it has a gradient.
    """

    name: str = "unused"
    weight: float = 0.0

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        return {self.name: torch.tensor(float(len(views.batch)), device=views.batch.ids.device)}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        return {self.name: quantising(views).codebook.unused() * len(views.batch)}

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss:
        return ChanceLoss(
            1 - LEAST_USED,
            "least use of a codebook",
            "the codebook has collapsed: fewer than a fifth of the codes are asked for, and what they name is too little; "
            "take fewer or shorter codes, a larger batch, or more steps",
        )


def _of_all(part: Tensor) -> Tensor:
    """The sum over all ranks."""
    return all_gather(part[None])[0].sum(0)


def quantising(views: Views) -> VectorQuantizer:
    """The model, which must know codes. Raises ValueError."""
    if not isinstance(views.model, VectorQuantizer):
        raise ValueError(f"{type(views.model).__name__} is no tokenizer of images")
    return views.model
