"""Masked region modeling: masked regions, predicted from the other regions and the text (ViLBERT, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diptych.batch import Regions
from diptych.config.objectives import MaskedRegions
from diptych.objectives.contrastive_logits import positive_pairs
from diptych.objectives.definition import Definition, Needs, Setup
from diptych.objectives.gather import all_gather, single_process
from diptych.objectives.masked_views import masked_pair, masked_regions
from diptych.objectives.masking import MaskedRegionBatch
from diptych.objectives.pretraining import Objective
from diptych.objectives.random_choices import PairMasking
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, ComparisonPool, FusionEncoder

Target = Callable[[Tensor, MaskedRegionBatch, Views], Tensor]
"""(the head's prediction for each masked region, the masked batch, the views) → the loss of each masked region."""


@dataclass(frozen=True)
class MaskedRegionLoss:
    """The mean loss of masked regions, by `target`: `class_target` (the paper's) or another of this file.

    Differs: the official code divides by the number of masked regions even if it is zero, which gives NaN.
    """

    masking: PairMasking
    target: Target
    name: str = "masked_regions"
    weight: float = 1.0

    def samples_compared(self, among: ComparisonPool) -> int | None:
        """The number of samples that negative regions are drawn from, with `ContrastTarget`; else None."""
        return among.all_ranks if isinstance(self.target, ContrastTarget) else None

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        return {self.name: masked_regions(views, self.masking.image).masked.sum().float()}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        masked = masked_regions(views, self.masking.image)
        predicted = views.head("regions", masked_pair(views, self.masking).image.gather(masked.masked)).float()
        return {self.name: self.target(predicted, masked, views).sum()}

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        return None  # would need the detector's class frequencies in the data


def class_target(predicted: Float[Tensor, "k c"], masked: MaskedRegionBatch, views: Views) -> Float[Tensor, " k"]:
    """Kullback-Leibler divergence from the predicted to the detector's class distribution (visual_target 0)."""
    if masked.original.classes is None:
        raise ValueError(
            "expected regions with class probabilities, got none: use another region target, or read data with classes"
        )
    return F.kl_div(predicted.log_softmax(1), masked.original.classes[masked.masked], reduction="none").sum(1)


def feature_target(predicted: Float[Tensor, "k f"], masked: MaskedRegionBatch, views: Views) -> Float[Tensor, " k"]:
    """Mean squared error of the detector's feature (visual_target 1)."""
    return (predicted - masked.original.features[masked.masked]).square().mean(1)


@dataclass(frozen=True)
class ContrastTarget:
    """Cross entropy of the region's own feature among it and `others` negatives, by dot product (visual_target 2).

    Noise contrastive estimation; negatives come from this and other images, on all ranks.
    """

    others: int = 255

    def __call__(self, predicted: Float[Tensor, "k f"], masked: MaskedRegionBatch, views: Views) -> Float[Tensor, " k"]:
        regions, first = gathered_regions(masked.original)
        indices = views.draws.sample_regions(masked, regions, positive_pairs(views).all_ids, first, self.others)
        negatives = regions.features.flatten(0, 1)[indices]
        candidates = torch.cat([masked.original.features[masked.masked][:, None], negatives], 1)
        scores = (candidates @ predicted[:, :, None]).squeeze(2)
        return F.cross_entropy(scores, scores.new_zeros(len(scores)).long(), reduction="none")


def gathered_regions(regions: Regions) -> tuple[Regions, int]:
    """The regions of all ranks, padded to the largest number, and the index of this rank's first image."""
    if single_process():
        return regions, 0
    longest = int(all_gather(torch.tensor([regions.mask.shape[1]], device=regions.mask.device))[0].amax())
    padding = longest - regions.mask.shape[1]
    features, first = all_gather(F.pad(regions.features, (0, 0, 0, padding)))
    boxes, mask = all_gather(F.pad(regions.boxes, (0, 0, 0, padding)))[0], F.pad(regions.mask, (0, padding))
    mask = all_gather(mask.to(torch.uint8))[0].bool()
    return Regions(features, boxes, mask, has_whole_image=regions.has_whole_image), first


TARGETS: dict[str, Target] = {"classes": class_target, "features": feature_target, "nce": ContrastTarget()}
"""Prediction targets by their names in the settings."""


def _losses(settings: MaskedRegions, setup: Setup) -> list[Objective]:
    masking = setup.pair_masking(settings.masking)
    return [MaskedRegionLoss(masking, TARGETS[settings.target], weight=settings.weight)]


DEFINITION = Definition(MaskedRegions, lambda _: Needs((FusionEncoder,), "regions", regions=True), _losses)
