"""Settings of the pre-training objectives: a dataclass for each, with its weight in the total loss.

The loss of each, and what it needs of the model and of the data, stand in objectives/.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

from diptych.config.validation import (
    CountOrZero,
    Fraction,
    FractionBelowOne,
    PositiveFraction,
    Range,
    Weight,
    settings,
)

MinBlock = Annotated[int, Range(1, 4096)]
CodebookSize = Annotated[int, Range(2, 2**16)]
MaskedShare = Annotated[float, Range(0, 1, "both")]  # of an image's patches


@settings("BlockMasking")
class BlockMasking:
    """BEiT's blockwise masking of patches: random rectangles, until a share of an image's patches is masked.

    Source: Bao et al. 2022, section 2.3, algorithm 1; BEiT-3 masks 40 %.
    """

    rate: MaskedShare = 0.4  # share of patches that are masked
    min_block: MinBlock = 16  # minimum patches of a masked block
    aspect: PositiveFraction = 0.3  # minimum aspect ratio of a masked block; its inverse is the maximum


@settings("RegionMasking")
class RegionMasking:
    """ViLBERT's masking of detected regions (section 3.2)."""

    rate: PositiveFraction = 0.15  # share of regions that are chosen
    keep_rate: FractionBelowOne = 0.1  # share of chosen regions that keep their feature; the others' becomes zero


@settings("WordRegionMasking")
class WordRegionMasking:
    """Masking of a pair's words and regions at the same time (ViLBERT)."""

    word_rate: PositiveFraction = 0.15  # share of tokens that are masked
    whole_words: bool = True  # mask whole words rather than single tokens
    regions: RegionMasking = RegionMasking()


@settings("objectives.itc")
class ITC:
    """Image-text contrastive loss (ITC)."""

    weight: Weight = 1.0
    form: Literal["softmax", "sigmoid"] = "softmax"  # softmax over the batch, or sigmoid per pair (SigLIP)
    grad_cache_size: CountOrZero = 0  # samples per encoder pass with gradient caching; 0: the whole batch


@settings("objectives.itm.negatives")
class RandomNegatives:
    """Mismatched pairs from the data, which replaces half of the images at random (ViLT)."""

    masking: WordRegionMasking | None = None  # mask words and regions of the pairs (ViLBERT)


@settings("objectives.itm.negatives")
class HardNegatives:
    """In-batch negatives, sampled by contrastive similarity (ALBEF); they need ITC."""

    uniform_mix: Fraction = 0.0  # probability added to every candidate (BLIP: 1e-4)
    local_only: bool = False  # sample from the process's own part of the batch


@settings("objectives.itm")
class ITM:
    """Image-text matching (ITM)."""

    weight: Weight = 1.0
    negatives: RandomNegatives | HardNegatives = RandomNegatives()


@settings("objectives.mlm.image")
class FullImage:
    """Words are predicted from the text and its whole image (ViLT)."""


@settings("objectives.mlm.image")
class NoImage:
    """Words are predicted from the text only (VLMo's text-only stage)."""


@settings("objectives.mlm")
class MLM:
    """Masked language modeling (MLM)."""

    weight: Weight = 1.0
    rate: PositiveFraction = 0.15  # share of tokens that are masked
    whole_words: bool = True  # mask whole words rather than single tokens
    image: FullImage | NoImage | RegionMasking | BlockMasking = FullImage()


@settings("objectives.wpa")
class WPA:
    """Word-patch alignment by optimal transport (ViLT)."""

    weight: Weight = 1.0


@settings("objectives.grid_distillation")
class GridDistillation:
    """Distillation of a frozen CNN's feature map, per patch."""

    weight: Weight = 1.0


@settings("objectives.class_distillation")
class ClassDistillation:
    """Distillation of a frozen CNN's class distribution."""

    weight: Weight = 1.0


@settings("objectives.lm")
class LM:
    """Autoregressive language modeling: captioning."""

    weight: Weight = 1.0
    label_smoothing: FractionBelowOne = 0.0  # over the vocabulary


@settings("objectives.masked_captions")
class MaskedCaptions:
    """Masked tokens of a caption under a causal mask (BEiT-3)."""

    weight: Weight = 1.0
    rate: PositiveFraction = 0.7  # share of tokens that are masked
    whole_words: bool = True  # mask whole words rather than single tokens
    label_smoothing: FractionBelowOne = 0.1  # over the vocabulary


@settings("objectives.masked_regions")
class MaskedRegions:
    """Masked region modeling (ViLBERT)."""

    weight: Weight = 1.0
    target: Literal["classes", "features", "nce"] = "classes"  # what is predicted; nce: its feature among others'
    masking: WordRegionMasking = WordRegionMasking()


@settings("objectives.mim")
class MIM:
    """Masked image modeling: pixels of masked patches (MAE)."""

    weight: Weight = 1.0
    rate: MaskedShare = 0.75  # share of patches that are masked


@settings("objectives.masked_codes")
class MaskedCodes:
    """Masked vision-language modeling: visual tokens of masked patches, with masked text (BEiT-3)."""

    weight: Weight = 1.0
    patches: BlockMasking = BlockMasking()
    word_rate: PositiveFraction = 0.15  # share of tokens that are masked
    whole_words: bool = True  # mask whole words rather than single tokens
    codebook_size: CodebookSize = 8192  # number of visual tokens


@settings("objectives.masked_codes_image_only")
class MaskedCodesImageOnly:
    """Masked image modeling: visual tokens of masked patches, without text (BEiT)."""

    weight: Weight = 1.0
    patches: BlockMasking = BlockMasking()
    codebook_size: CodebookSize = 8192  # number of visual tokens


@settings("objectives.mlm_text_only")
class TextOnlyMLM:
    """Masked language modeling of texts without images, beside the other losses (BEiT-3)."""

    weight: Weight = 1.0
    rate: PositiveFraction = 0.15  # share of tokens that are masked
    whole_words: bool = True  # mask whole words rather than single tokens


@settings("objectives.vqkd")
class VQKD:
    """Visual tokenizer: vector-quantized distillation of a frozen CNN's features per patch (VQ-KD, BEiT v2)."""

    weight: Weight = 1.0


@settings("objectives.triplet")
class Triplet:
    """Triplet loss with a margin over negatives (VSE++, SCAN)."""

    weight: Weight = 1.0
    margin: Annotated[float, Range(0, 100)] = 0.2
    hardest_only: bool = True  # only the hardest negative counts, not the sum over all


@settings("objectives")
class Objectives:
    """The objectives of a pre-training run, in the order in which they are computed; None: not computed."""

    itc: ITC | None = None
    itm: ITM | None = None
    mlm: MLM | None = None
    wpa: WPA | None = None
    grid_distillation: GridDistillation | None = None
    class_distillation: ClassDistillation | None = None
    lm: LM | None = None
    masked_captions: MaskedCaptions | None = None
    masked_regions: MaskedRegions | None = None
    mim: MIM | None = None
    masked_codes: MaskedCodes | None = None
    masked_codes_image_only: MaskedCodesImageOnly | None = None
    mlm_text_only: TextOnlyMLM | None = None
    vqkd: VQKD | None = None
    triplet: Triplet | None = None

    def present(self) -> dict[str, Any]:
        """The objectives that are not None, by their field, which is also the name of their loss."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
