"""Masked image modeling on visual tokens: the codes of masked patches, predicted from the visible ones (BEiT)."""

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
from diptych.objectives.random_choices import PairMasking, WordMasking
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss


@dataclass(frozen=True)
class MaskedImageCodes:
    """Cross entropy of the codes that a trained visual tokenizer gives to masked patches.

    `text_masking`: masking of the text that the image is fused with; None: the image is encoded without a text.
    Source: BEiT, section 2.3; BEiT-3, section 2.2. Differs: BEiT-3's paper does not say whether both modalities of a
    pair are masked at once; here they are, as in its predecessor (VL-BEiT, section 2.3).
    """

    blocks: BlockMasking = field(default_factory=BlockMasking)
    name: str = "masked_codes"
    weight: float = 1.0
    text_masking: WordMasking | None = None

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = masked_patches(views, self.blocks).sum().float()
        return {self.name: n, f"{self.name}/accuracy": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        logits, codes = self.logits(views), visual_codes(views)[masked_patches(views, self.blocks)]
        return {
            self.name: F.cross_entropy(logits, codes, reduction="sum"),
            f"{self.name}/accuracy": (logits.argmax(1) == codes).sum().float().detach(),
        }

    def logits(self, views: Views) -> Float[Tensor, "masked codes"]:
        """Code logits of the masked patches, sample after sample."""
        patches = self.image(views).select(name="patches")
        return views.head("codes", patches.gather(masked_patches(views, self.blocks))).float()

    def image(self, views: Views) -> Tokens:
        """The image tokens that the codes are predicted from."""
        if self.text_masking is not None:
            return masked_pair(views, PairMasking(self.text_masking, self.blocks)).image
        return masked_image_unimodal(views, self.blocks)

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """The entropy of the code frequencies (`statistics["code_entropy"]`), else ln of their number ("codes")."""
        if "code_entropy" not in statistics and "codes" not in statistics:
            return None
        return ChanceLoss(
            statistics.get("code_entropy", math.log(statistics.get("codes", 1.0))),
            "entropy of the visual tokens' frequencies",
            "only code frequencies are learned, the visible patches are not used: check the learning rate and warm-up, "
            "and that the visual tokenizer uses its whole codebook",
        )
