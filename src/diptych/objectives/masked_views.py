"""Masked views of a batch: with masked regions or patches, and masked words."""

from __future__ import annotations

from jaxtyping import Bool, Int
from torch import Tensor

from diptych.batch import Regions
from diptych.config.objectives import BlockMasking, RegionMasking
from diptych.modules.tokens import FusedTokens, Tokens
from diptych.objectives.masking import MaskedRegionBatch
from diptych.objectives.random_choices import PairMasking
from diptych.objectives.views import Views
from diptych.protocols import MaskedImageEncoder


def masked_regions(views: Views, masking: RegionMasking | BlockMasking) -> MaskedRegionBatch:
    """The regions paired with each text, some of them masked. Raises ValueError for a batch without regions."""
    regions = views.batch.regions if views.batch.matching is None else views.batch.matching.visual
    if not isinstance(regions, Regions) or not isinstance(masking, RegionMasking):
        raise ValueError("masked region modeling needs detected regions, but this batch has none")
    return views.cached(("masked regions", masking), lambda: views.draws.mask_regions(regions, masking))


def masked_patches(views: Views, blocks: BlockMasking) -> Bool[Tensor, "b cells"]:
    """The mask of masked patches on the batch's patch grid. Runs no model."""

    def make() -> Tensor:
        image, patch = views.image_input, views.tokenizer.patch
        rows, columns = type(image).from_full(image.pixels[:1]).extents(patch)[0].tolist()
        return views.draws.mask_patches(image.extents(patch), (rows, columns), blocks)

    return views.cached(("masked patches", blocks), make)


def visual_codes(views: Views) -> Int[Tensor, "b cells"]:
    """The visual tokenizer's code of each patch, -1 at padding."""
    return views.cached(("codes",), lambda: views.tokenizer(views.image_input))


def masked_image(views: Views, blocks: BlockMasking) -> Tokens:
    """The tokens of each masked image, before fusion."""
    masked = masked_patches(views, blocks)
    return views.cached(("masked image", blocks), lambda: _encoder(views).encode_masked(views.image_input, masked))


def masked_image_unimodal(views: Views, blocks: BlockMasking) -> Tokens:
    """The tokens of each masked image after unimodal encoding."""
    encode = _encoder(views).encode_unimodal
    return views.cached(("masked image alone", blocks), lambda: encode(masked_image(views, blocks)))


def masked_pair(views: Views, masking: PairMasking) -> FusedTokens:
    """Each masked text fused with its masked regions or patches."""

    def make() -> FusedTokens:
        model, text = views.fusion_encoder, views.masked(masking.words).text
        if isinstance(masking.image, BlockMasking):
            return model.fuse(model.encode_text(text), masked_image(views, masking.image))
        return model.fuse(model.encode_text(text), views.encode(masked_regions(views, masking.image).regions))

    return views.cached(("masked regions or patches and words", masking), make)


def _encoder(views: Views) -> MaskedImageEncoder:
    if not isinstance(views.model, MaskedImageEncoder):
        raise ValueError(f"{type(views.model).__name__} has no mask token for patches (encode_masked)")
    return views.model
