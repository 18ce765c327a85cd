"""Vector-quantized knowledge distillation (VQ-KD): training of the visual tokenizer of BEiT v2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.config.objectives import VQKD
from diptych.modules.codebook import CodeUsage
from diptych.objectives.definition import Definition, Needs
from diptych.objectives.gather import all_gather
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, VectorQuantizer

LEAST_USED = 0.2  # fraction of the codebook; with less in use a visual tokenizer has failed


@dataclass(frozen=True)
class VQKDLoss:
    """1 − cosine between each patch's decoded feature and the teacher's, plus `commitment` times the commitment loss.

    The commitment loss is the squared distance of a patch's vector from its code (weight 1, and a mean over channels,
    in the official code). In training the codebook is updated too, by the batch of all ranks, once per micro-batch.

    Source: BEiT v2, section 2.2, equation 2.
    Differs: the target is the teacher's feature as a unit vector, less the mean of such vectors. A CNN's features are
    never negative and share a large mean, and predicting only that mean would already give a high cosine. They are
    normalised before the mean is subtracted: otherwise all weak features would point in one direction, which is as easy
    to predict.
    """

    name: str = "vqkd"
    weight: float = 1.0
    commitment: float = 1.0

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = views.image_input.extents(views.teacher_network.stride).prod(1).sum().float()
        return {self.name: n, f"{self.name}/apart": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        model, vectors, grid = vector_quantizer(views), views.image, views.teacher_features.grid
        if vectors.layout.spans[0].grid != grid.shape[1:3]:
            raise ValueError(
                f"expected patches of {views.teacher_network.stride} pixels, the stride of the CNN, in a grid of "
                f"{tuple(grid.shape[1:3])}, got {vectors.layout.spans[0].grid}: change the tokenizer's patch_size"
            )
        x, features = vectors.pack().values, F.normalize(grid.flatten(1, 2)[vectors.mask].float(), dim=1)
        if model.training:
            model.feature_mean.update(_all_sum(features.sum(0)), _all_sum(features.new_tensor(len(features))))
            if not model.codebook.begun:
                model.codebook.initialize(all_gather(x.detach())[0])
        quantised, codes = model.quantize(vectors)
        decoded = model.decode_codes(quantised).pack().values.float()
        loss = 1 - F.cosine_similarity(decoded, features - model.feature_mean.mean, dim=1)
        distance = (model.codebook.vectors[codes] - x).square().mean(1)
        if model.training:
            first = views.draws.order_patches(vectors) == 0  # one random patch of each image, to reset dead codes to
            usage = CodeUsage(*(_all_sum(part) for part in model.codebook.usage(x.detach(), codes)))
            model.codebook.update(usage, all_gather(vectors.gather(first).detach())[0])
        return {
            self.name: loss.sum() + self.commitment * distance.sum(),
            f"{self.name}/apart": loss.sum().detach(),
        }

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """1: a cosine of 0, for a model that predicts the mean feature."""
        return ChanceLoss(
            1.0,
            "predicting the mean feature",
            "the codes carry no information on a patch: the run is too short, or the codebook collapsed (see `unused`)",
        )


@dataclass(frozen=True)
class UnusedCodes:
    """The fraction of codes without assignments in the last `patience` batches: a metric, without gradient."""

    name: str = "unused"
    weight: float = 0.0

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        return {self.name: torch.tensor(float(len(views.batch)), device=views.batch.ids.device)}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        return {self.name: vector_quantizer(views).codebook.unused() * len(views.batch)}

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss:
        return ChanceLoss(
            1 - LEAST_USED,
            "a fifth of the codes in use",
            "the codebook has collapsed, fewer than a fifth of the codes are in use: use fewer or shorter codes, a "
            "larger batch, or more steps",
        )


def _all_sum(x: Tensor) -> Tensor:
    """The sum of `x` over all ranks."""
    return all_gather(x[None])[0].sum(0)


def vector_quantizer(views: Views) -> VectorQuantizer:
    """The model, checked to be a visual tokenizer. Raises ValueError."""
    if not isinstance(views.model, VectorQuantizer):
        raise ValueError(f"{type(views.model).__name__} is not a visual tokenizer, which VQ-KD needs")
    return views.model


DEFINITION = Definition(
    VQKD,
    needs=lambda _: Needs((VectorQuantizer,), text=False, frozen_cnn=True),
    losses=lambda vqkd, _: [VQKDLoss(weight=vqkd.weight), UnusedCodes()],
)
