"""Masked images: which visual tokens stand for the patches that are hidden, given those that are not?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diptych.modules.tokens import Tokens
from diptych.objectives.masked_views import masked_image_unimodal, masked_pair, masked_patches, visual_codes
from diptych.objectives.masking import BlockMasking
from diptych.objectives.sampling import PairMasking, WordMasking
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss


@dataclass(frozen=True)
class MaskedImageCodes:
    """Cross entropy of hidden patches' codes, as a tokenizer that has learned gives them (BEiT, section 2.3; BEiT-3, section
    2.2). `beside`: the words hidden in the text that the image is read with; None: it is read alone.

    Differs: whether BEiT-3 hides both sides of a pair at once is not said in its paper; its predecessor does (VL-BEiT,
    section 2.3), and so do we.
    """

    blocks: BlockMasking = field(default_factory=BlockMasking)
    name: str = "masked_codes"
    weight: float = 1.0
    beside: WordMasking | None = None

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = masked_patches(views, self.blocks).sum().float()
        return {self.name: n, f"{self.name}/accuracy": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        logits, there = self.guesses(views), visual_codes(views)[masked_patches(views, self.blocks)]
        return {
            self.name: F.cross_entropy(logits, there, reduction="sum"),
            f"{self.name}/accuracy": (logits.argmax(1) == there).sum().float().detach(),
        }

    def guesses(self, views: Views) -> Float[Tensor, "hidden codes"]:
        """Logits of the hidden patches, sample after sample."""
        patches = self.image(views).select(name="patches")
        return views.head("codes", patches.gather(masked_patches(views, self.blocks))).float()

    def image(self, views: Views) -> Tokens:
        """What the codes are guessed from."""
        if self.beside is not None:
            return masked_pair(views, PairMasking(self.beside, self.blocks)).image
        return masked_image_unimodal(views, self.blocks)

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """The entropy of the codes' frequencies, where `statistics` knows it ("code_entropy"), else ln of their number
        ("codes").
        """
        if "code_entropy" not in statistics and "codes" not in statistics:
            return None
        return ChanceLoss(
            statistics.get("code_entropy", math.log(statistics.get("codes", 1.0))),
            "entropy of the visual tokens",
            "only how frequent each code is has been learned: the visible patches are not read; check the learning rate and "
            "warm-up, and that the tokenizer uses its codebook",
        )
