"""Masked image modeling on visual tokens: the codes of masked patches, predicted from the visible ones (BEiT)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.config.objectives import BlockMasking, MaskedCodes, MaskedCodesImageOnly
from diptych.modules.init import init_transformer
from diptych.modules.tokens import Tokens
from diptych.objectives.definition import Definition, Needs, Setup
from diptych.objectives.masked_views import masked_image_unimodal, masked_pair, masked_patches, visual_codes
from diptych.objectives.pretraining import Objective
from diptych.objectives.random_choices import PairMasking, WordMasking
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, FusionEncoder, MaskedImageEncoder


@dataclass(frozen=True)
class MaskedCodeLoss:
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


def add_code_head(settings: MaskedCodes | MaskedCodesImageOnly, model: Any, heads: nn.ModuleDict) -> None:
    """Adds the head that predicts codes, which both losses share. Raises ValueError if they differ in their number."""
    size = settings.codebook_size
    if "codes" not in heads:
        heads["codes"] = nn.Linear(model.dim, size).apply(init_transformer)
    elif (other := heads.get_submodule("codes").out_features) != size:
        raise ValueError(
            "objectives.masked_codes and objectives.masked_codes_image_only share one head, and their codebook_size "
            f"is {other} and {size}: set both to the size of the visual tokenizer's codebook"
        )


def _losses(settings: MaskedCodes, setup: Setup) -> list[Objective]:
    words = setup.word_masking(settings.word_rate, settings.whole_words)
    return [MaskedCodeLoss(settings.patches, weight=settings.weight, text_masking=words)]


def _image_only_losses(settings: MaskedCodesImageOnly, setup: Setup) -> list[Objective]:
    return [MaskedCodeLoss(settings.patches, "masked_codes_image_only", settings.weight)]


def _needs(codebook_size: int, *protocols: type, text: bool) -> Needs:
    return Needs(protocols, "codes", text=text, masks_patches=True, visual_tokenizer=True, codebook_size=codebook_size)


DEFINITION = Definition(
    MaskedCodes,
    lambda codes: _needs(codes.codebook_size, MaskedImageEncoder, FusionEncoder, text=True),
    _losses,
    add_code_head,
)
IMAGE_ONLY_DEFINITION = Definition(
    MaskedCodesImageOnly,
    lambda codes: _needs(codes.codebook_size, MaskedImageEncoder, text=False),
    _image_only_losses,
    add_code_head,
)
