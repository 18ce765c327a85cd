"""Masked regions: what was hidden, given the other regions and the text? (Lu et al., ViLBERT, section 3.2)"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diptych.batch import Regions
from diptych.objectives.contrast import positive_pairs
from diptych.objectives.gather import all_gather, single_process
from diptych.objectives.masked_views import masked_pair, masked_regions
from diptych.objectives.masking import MaskedRegionBatch
from diptych.objectives.sampling import PairMasking
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, ComparisonPool

Target = Callable[[Tensor, MaskedRegionBatch, Views], Tensor]
"""(what a head says of each hidden region, the regions, the views) → each hidden region's loss."""


@dataclass(frozen=True)
class MaskedRegions:
    """The mean over hidden regions of their distance to a `target`: `by_class` in the paper, or another from this file.

    Differs: the official code divides by the number of hidden regions even where there is none, which gives no number.
    """

    hiding: PairMasking
    target: Target
    name: str = "masked_regions"
    weight: float = 1.0

    def samples_compared(self, among: ComparisonPool) -> int | None:
        """Samples whose regions a hidden one is told from, where the target is such a contrast; else None."""
        return among.all_ranks if isinstance(self.target, ContrastTarget) else None

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        return {self.name: masked_regions(views, self.hiding.image).masked.sum().float()}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        hidden = masked_regions(views, self.hiding.image)
        said = views.head("regions", masked_pair(views, self.hiding).image.gather(hidden.masked)).float()
        return {self.name: self.target(said, hidden, views).sum()}

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        return None  # the detector's class frequencies are a fact of the data that nobody has counted


def class_target(said: Float[Tensor, "k c"], hidden: MaskedRegionBatch, views: Views) -> Float[Tensor, " k"]:
    """Kullback-Leibler divergence of the detector's class probabilities from what is said (visual_target 0)."""
    if hidden.original.classes is None:
        raise ValueError("these regions have no class probabilities: take regions by their features, or read them too")
    return F.kl_div(said.log_softmax(1), hidden.original.classes[hidden.masked], reduction="none").sum(1)


def feature_target(said: Float[Tensor, "k f"], hidden: MaskedRegionBatch, views: Views) -> Float[Tensor, " k"]:
    """Mean squared distance to the detector's feature (visual_target 1)."""
    return (said - hidden.original.features[hidden.masked]).square().mean(1)


@dataclass(frozen=True)
class ContrastTarget:
    """Cross entropy of the region's own feature among it and `others` of this and other images, of all ranks, by dot
    product: noise contrastive estimation (visual_target 2).
    """

    others: int = 255

    def __call__(self, said: Float[Tensor, "k f"], hidden: MaskedRegionBatch, views: Views) -> Float[Tensor, " k"]:
        everyone, first = gathered_regions(hidden.original)
        drawn = views.draws.sample_regions(hidden, everyone, positive_pairs(views).everyone, first, self.others)
        others = everyone.features.flatten(0, 1)[drawn]
        candidates = torch.cat([hidden.original.features[hidden.masked][:, None], others], 1)
        scores = (candidates @ said[:, :, None]).squeeze(2)
        return F.cross_entropy(scores, scores.new_zeros(len(scores)).long(), reduction="none")


def gathered_regions(regions: Regions) -> tuple[Regions, int]:
    """Every rank's images, padded to the most regions of any; and where this rank's own begin."""
    if single_process():
        return regions, 0
    most = int(all_gather(torch.tensor([regions.mask.shape[1]], device=regions.mask.device))[0].amax())
    more = most - regions.mask.shape[1]
    features, first = all_gather(F.pad(regions.features, (0, 0, 0, more)))
    boxes, real = all_gather(F.pad(regions.boxes, (0, 0, 0, more)))[0], F.pad(regions.mask, (0, more))
    return Regions(
        features, boxes, all_gather(real.to(torch.uint8))[0].bool(), has_whole_image=regions.has_whole_image
    ), first
