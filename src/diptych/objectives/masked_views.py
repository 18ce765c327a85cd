"""Views of a batch in which something is hidden: regions or patches, and words beside them."""

from __future__ import annotations

from jaxtyping import Bool, Int
from torch import Tensor

from diptych.batch import Regions
from diptych.modules.tokens import FusedTokens, Tokens
from diptych.objectives.masking import BlockMasking, MaskedRegionBatch, RegionMasking
from diptych.objectives.sampling import PairMasking
from diptych.objectives.views import Views
from diptych.protocols import MaskedImageEncoder


def masked_regions(views: Views, masking: RegionMasking | BlockMasking) -> MaskedRegionBatch:
    """The regions shown beside each text, some of them hidden."""
    shown = views.batch.regions if views.batch.matching is None else views.batch.matching.visual
    if not isinstance(shown, Regions) or not isinstance(masking, RegionMasking):
        raise ValueError("this batch has no regions to hide")
    return views.cached(("hidden regions", masking), lambda: views.draws.mask_regions(shown, masking))


def masked_patches(views: Views, blocks: BlockMasking) -> Bool[Tensor, "b cells"]:
    """Which patches of each image are hidden, on their canvas. Runs no model."""

    def make() -> Tensor:
        image, patch = views.image_input, views.tokenizer.patch
        canvas = type(image).from_full(image.pixels[:1]).extents(patch)[0].tolist()
        return views.draws.mask_patches(image.extents(patch), (canvas[0], canvas[1]), blocks)

    return views.cached(("hidden patches", blocks), make)


def visual_codes(views: Views) -> Int[Tensor, "b cells"]:
    """The visual token of each patch, -1 where there is none."""
    return views.cached(("codes",), lambda: views.tokenizer(views.image_input))


def masked_image(views: Views, blocks: BlockMasking) -> Tokens:
    """Each image's tokens with patches hidden, before they meet a text."""
    hidden = masked_patches(views, blocks)
    return views.cached(("hidden image", blocks), lambda: _hiding(views).encode_masked(views.image_input, hidden))


def masked_image_unimodal(views: Views, blocks: BlockMasking) -> Tokens:
    """The same after they have met each other."""
    return views.cached(("hidden alone", blocks), lambda: _hiding(views).encode_unimodal(masked_image(views, blocks)))


def masked_pair(views: Views, hiding: PairMasking) -> FusedTokens:
    """Each text with what is shown beside it, words hidden here and regions or patches there."""

    def make() -> FusedTokens:
        text = views.fusing.encode_text(views.masked(hiding.words).text)
        if isinstance(hiding.image, BlockMasking):
            return views.fusing.fuse(text, masked_image(views, hiding.image))
        return views.fusing.fuse(text, views.encode(masked_regions(views, hiding.image).regions))

    return views.cached(("hidden pair", hiding), make)


def _hiding(views: Views) -> MaskedImageEncoder:
    if not isinstance(views.model, MaskedImageEncoder):
        raise ValueError(f"{type(views.model).__name__} can hide no patches")
    return views.model
