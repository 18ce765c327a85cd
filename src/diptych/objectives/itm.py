"""Image-text matching against hard negatives: pairs that contrast finds alike, though they do not belong together.

Image-text matching: does this text describe this image?
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.modules.tokens import Tokens
from diptych.objectives.contrast import ContrastLogits, contrast_logits, positive_pairs
from diptych.objectives.gather import all_gather_tokens
from diptych.objectives.masked_views import masked_pair
from diptych.objectives.sampling import PairMasking
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, ComparisonPool


class Negatives(NamedTuple):
    """By place among the candidates: an image that is not the text's own, and a text that is not the image's own."""

    images: Int[Tensor, " b"]
    texts: Int[Tensor, " b"]


@dataclass(frozen=True)
class HardNegativeITM:
    """Cross entropy of match or no match over three pairs a sample: its own, its text with another's image, its image with
    another's text (ALBEF, section 3.2).

    Negatives are drawn in proportion to the softmax of what contrast compares (`head`, its `readout`), from the batch of
    all ranks (VLMo; BLIP's retrieval on COCO), or with `in_rank` from this rank's part of it (ALBEF, BLIP). `even`: a share
    added to every candidate's probability (BLIP: 1e-4). Pairs that share an image are no negatives of each other
    (objectives.identity); a sample among whose candidates there are only such is judged by its own pair alone. `compare`:
    what is compared, where it is not what contrast itself compares (BLIP's retrieval: objectives.contrast.among_themselves).

    A negative's tokens come from the rank that made them, and its gradient goes back there. Differs: so does the official
    BLIP with images, while its texts and both sides of VLMo travel as words and pixels and are encoded again, which but for
    dropout gives the same gradients.
    """

    name: str = "itm"
    weight: float = 1.0
    head: str = "contrast"
    readout: int = 0
    uniform_mix: float = 0.0
    local_negatives: bool = False
    compare: Callable[[Views, str, int], ContrastLogits] = contrast_logits

    def samples_compared(self, among: ComparisonPool) -> int:
        """Samples that each one is compared with: the batch, of this rank or of all: what is queued has no tokens to be fused."""
        return among.local if self.local_negatives else among.all_ranks

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = self._inputs(views).sum().float()
        return {self.name: n, f"{self.name}/accuracy": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        logits, asked = self.logits(views).float(), self._inputs(views)
        matched = torch.arange(len(logits), device=logits.device) < len(views.batch)
        right = ((logits.argmax(1) == matched) & asked).sum().float()
        return {
            self.name: F.cross_entropy(logits[asked], matched[asked].long(), reduction="sum"),
            f"{self.name}/accuracy": right.detach(),
        }

    def _inputs(self, views: Views) -> Bool[Tensor, " pairs"]:
        """Which of the pairs that `logits` judges count: all but the negatives of samples that have none."""
        told = ~self._all_of_one_image(views)
        return torch.cat([torch.ones_like(told), told, told])

    def _all_of_one_image(self, views: Views) -> Bool[Tensor, " b"]:
        """Which samples have no candidate of another image, though they have candidates."""
        belong = positive_pairs(views).mask(self.local_negatives)
        return belong.all(1) & (belong.shape[1] > 1)

    def logits(self, views: Views) -> Float[Tensor, "pairs 2"]:
        """Mismatched, matched; of each sample's own pair, then of texts with negative images, then of negative texts with
        images.
        """
        images, texts = self.negatives(views)
        (every_text, first), (every_image, _) = self._candidates(views.text), self._candidates(views.image)
        own = torch.arange(first, first + len(images), device=images.device)
        text, image = (
            every_text.index_samples(torch.cat([own, texts])),
            every_image.index_samples(torch.cat([images, own])),
        )
        false = views.fusing.fuse(text, image)
        return views.head("match", torch.cat([views.pair.pooled, false.pooled]))

    def _candidates(self, tokens: Tokens) -> tuple[Tokens, int]:
        """What negatives are taken from, and where this rank's own begin."""
        return (tokens, 0) if self.local_negatives else all_gather_tokens(tokens)

    @torch.no_grad()
    def negatives(self, views: Views) -> Negatives:
        found = self.compare(views, self.head, self.readout)
        batch = slice(found.first, found.first + len(found.own)) if self.local_negatives else slice(found.present)
        belong = found.own[:, None] == found.others[batch]
        belong &= ~self._all_of_one_image(views)[:, None]  # what is drawn for those does not count
        return Negatives(
            views.draws.sample_negatives("image", self.likeness(found.to_image[:, batch], belong)),
            views.draws.sample_negatives("text", self.likeness(found.to_text[:, batch], belong)),
        )

    def likeness(self, logits: Float[Tensor, "b m"], belong: Tensor) -> Float[Tensor, "b m"]:
        """Log-probabilities, not normalised, at which negatives are drawn; −∞ where two belong together."""
        probability = logits.float().log_softmax(1)
        even = torch.tensor(self.uniform_mix, device=logits.device).log()
        return torch.logaddexp(probability, even).masked_fill(belong, -torch.inf)

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss:
        return ChanceLoss(
            math.log(3) - 2 / 3 * math.log(2),
            "entropy of one match in three",
            "text and image are not yet compared: matching needs contrast to find hard negatives, and image features "
            "that mean something; start from a taught image encoder or lower the learning rate",
        )


@dataclass(frozen=True)
class ITM:
    """Cross entropy of match or no match on the pooled pair, the image replaced at random half of the time (ViLT, 3.2)."""

    name: str = "itm"
    weight: float = 1.0
    prior: float = 0.5  # share of matched pairs in the data
    hiding: PairMasking | None = None  # what is hidden of the pair that is judged (ViLBERT reads words and regions so)

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = torch.tensor(float(len(views.batch)), device=views.matching.matched.device)
        return {self.name: n, f"{self.name}/accuracy": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        logits = self.logits(views).float()
        matched = views.matching.matched
        right = (logits.argmax(1) == matched).sum().float()
        return {
            self.name: F.cross_entropy(logits, matched.long(), reduction="sum"),
            f"{self.name}/accuracy": right.detach(),
        }

    def logits(self, views: Views) -> Tensor:
        """(b, 2): mismatched, matched."""
        pair = views.matching_pair if self.hiding is None else masked_pair(views, self.hiding)
        return views.head("match", pair.pooled)

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss:
        p = self.prior
        entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
        return ChanceLoss(
            entropy,
            "entropy of the matching prior",
            "text and image are not yet compared: matching needs image features that mean something; "
            "start from a taught image encoder, train masked words first, or lower the learning rate",
        )
