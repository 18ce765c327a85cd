"""Image-text matching (ITM), with random negatives from the data or with hard negatives from the contrastive logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.config.objectives import ITM, HardNegatives
from diptych.modules.tokens import Tokens
from diptych.objectives.contrastive_logits import ContrastLogits, contrast_logits, positive_pairs
from diptych.objectives.definition import Definition, Needs, OtherObjective, Setup
from diptych.objectives.gather import all_gather_tokens
from diptych.objectives.masked_views import masked_pair
from diptych.objectives.pretraining import Objective
from diptych.objectives.random_choices import PairMasking
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, ComparisonPool, FusionEncoder


class Negatives(NamedTuple):
    """Candidate indices of a negative image for each text, and of a negative text for each image."""

    images: Int[Tensor, " b"]
    texts: Int[Tensor, " b"]


@dataclass(frozen=True)
class HardNegativeITMLoss:
    """Cross entropy of match or mismatch over three pairs a sample: the true one, and two with hard negatives.

    Negatives are sampled in proportion to the softmax of the contrastive logits. Pairs that share an image are not
    negatives of each other (see contrastive_logits.py); a sample without any negative counts with its true pair only.

    Args:
        head, branch: ITC head, and index of the model's pooled features, that give the contrastive logits.
        uniform_mix: added to every candidate's probability (BLIP: 1e-4).
        local_negatives: sample from this rank's batch (ALBEF, BLIP), not from all ranks' (VLMo; BLIP's retrieval on
            COCO).
        compare: the function that gives the logits (BLIP's retrieval: `contrastive_logits.within_modality_logits`).

    A negative's tokens are gathered from the rank that computed them, and its gradient flows back there.
    Source: ALBEF, section 3.2. Differs: the official BLIP does so with images, but gathers the ids of texts, and VLMo
    ids and pixels, and encodes them again, which but for dropout gives the same gradients.
    """

    name: str = "itm"
    weight: float = 1.0
    head: str = "itc"
    branch: int = 0
    uniform_mix: float = 0.0
    local_negatives: bool = False
    compare: Callable[[Views, str, int], ContrastLogits] = contrast_logits

    def samples_compared(self, among: ComparisonPool) -> int:
        """The number of candidates of each sample: this rank's batch or all ranks'. The queue has no tokens to fuse."""
        return among.local if self.local_negatives else among.all_ranks

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = self._counted(views).sum().float()
        return {self.name: n, f"{self.name}/accuracy": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        logits, counted = self.logits(views).float(), self._counted(views)
        matched = torch.arange(len(logits), device=logits.device) < len(views.batch)
        correct = ((logits.argmax(1) == matched) & counted).sum().float()
        return {
            self.name: F.cross_entropy(logits[counted], matched[counted].long(), reduction="sum"),
            f"{self.name}/accuracy": correct.detach(),
        }

    def _counted(self, views: Views) -> Bool[Tensor, " pairs"]:
        """Which pairs of `logits` count in the loss: all but the negatives of samples that have none."""
        has_negative = ~self._without_negative(views)
        return torch.cat([torch.ones_like(has_negative), has_negative, has_negative])

    def _without_negative(self, views: Views) -> Bool[Tensor, " b"]:
        """Which samples have positives only among several candidates."""
        positives = positive_pairs(views).mask(self.local_negatives)
        return positives.all(1) & (positives.shape[1] > 1)

    def logits(self, views: Views) -> Float[Tensor, "pairs 2"]:
        """Logits (mismatched, matched): true pairs, texts with negative images, negative texts with images."""
        images, texts = self.negatives(views)
        (all_texts, first), (all_images, _) = self._candidates(views.text), self._candidates(views.image)
        own = torch.arange(first, first + len(images), device=images.device)
        text = all_texts.index_samples(torch.cat([own, texts]))
        if all_images is views.image:
            mismatched = views.fuse(text, torch.cat([images, own]))
        else:  # of other ranks
            mismatched = views.fusion_encoder.fuse(text, all_images.index_samples(torch.cat([images, own])))
        return views.head("itm", torch.cat([views.pair.pooled, mismatched.pooled]))

    def _candidates(self, tokens: Tokens) -> tuple[Tokens, int]:
        """The tokens to sample negatives from, and the index of this rank's first."""
        return (tokens, 0) if self.local_negatives else all_gather_tokens(tokens)

    @torch.no_grad()
    def negatives(self, views: Views) -> Negatives:
        """A negative image and text for each sample."""
        logits = self.compare(views, self.head, self.branch)
        local = slice(logits.first, logits.first + len(logits.ids))
        batch = local if self.local_negatives else slice(logits.num_in_batch)
        positives = logits.ids[:, None] == logits.candidate_ids[batch]
        positives &= ~self._without_negative(views)[:, None]  # these samples' negatives are drawn, but do not count
        return Negatives(
            views.draws.sample_negatives("image", self.log_weights(logits.to_image[:, batch], positives)),
            views.draws.sample_negatives("text", self.log_weights(logits.to_text[:, batch], positives)),
        )

    def log_weights(self, logits: Float[Tensor, "b m"], positives: Bool[Tensor, "b m"]) -> Float[Tensor, "b m"]:
        """Unnormalised log-probabilities with which negatives are sampled; −∞ at positives."""
        log_probability = logits.float().log_softmax(1)
        uniform = torch.tensor(self.uniform_mix, device=logits.device).log()
        return torch.logaddexp(log_probability, uniform).masked_fill(positives, -torch.inf)

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss:
        return ChanceLoss(
            math.log(3) - 2 / 3 * math.log(2),
            "predicting one match in three pairs",
            "text and image are not yet compared: ITM needs a trained ITC for hard negatives, and informative image "
            "features; start from a pre-trained image encoder or lower the learning rate",
        )


@dataclass(frozen=True)
class ITMLoss:
    """Cross entropy of match or mismatch of a pair; the data replaces half of the images at random (ViLT, 3.2)."""

    name: str = "itm"
    weight: float = 1.0
    prior: float = 0.5  # fraction of matched pairs in the data
    masking: PairMasking | None = None  # masking of the pair's words and regions (ViLBERT)

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = torch.tensor(float(len(views.batch)), device=views.matching.matched.device)
        return {self.name: n, f"{self.name}/accuracy": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        logits = self.logits(views).float()
        matched = views.matching.matched
        correct = (logits.argmax(1) == matched).sum().float()
        return {
            self.name: F.cross_entropy(logits, matched.long(), reduction="sum"),
            f"{self.name}/accuracy": correct.detach(),
        }

    def logits(self, views: Views) -> Tensor:
        """Logits (b, 2): mismatched, matched."""
        pair = views.matching_pair if self.masking is None else masked_pair(views, self.masking)
        return views.head("itm", pair.pooled)

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss:
        p = self.prior
        entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
        return ChanceLoss(
            entropy,
            "predicting the share of matched pairs",
            "text and image are not yet compared: ITM needs informative image features; start from a pre-trained image "
            "encoder, train MLM first, or lower the learning rate",
        )


def _needs(settings: ITM) -> Needs:
    if isinstance(settings.negatives, HardNegatives):
        why = "hard negatives of itm are sampled by itc similarity"
        return Needs((FusionEncoder,), "itm", other=OtherObjective("itc", why, "itm.negatives to RandomNegatives"))
    regions = settings.negatives.masking is not None
    return Needs((FusionEncoder,), "itm", mismatched_pairs=True, regions=regions)


def _losses(settings: ITM, setup: Setup) -> list[Objective]:
    """With random or hard negatives; these are sampled by the first ITC head."""
    negatives = settings.negatives
    if isinstance(negatives, HardNegatives):
        head = next(iter(setup.itc_heads), "")
        mix, local_only = negatives.uniform_mix, negatives.local_only
        return [HardNegativeITMLoss(weight=settings.weight, head=head, uniform_mix=mix, local_negatives=local_only)]
    masking = None if negatives.masking is None else setup.pair_masking(negatives.masking)
    return [ITMLoss(weight=settings.weight, masking=masking)]


DEFINITION = Definition(ITM, _needs, _losses, trains="matching")
