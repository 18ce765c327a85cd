"""Views of a batch in which something is hidden: regions or patches, and words beside them."""

from __future__ import annotations

from jaxtyping import Bool, Int
from torch import Tensor

from diptych.batch import Regions
from diptych.modules.tokens import Pair, Tokens
from diptych.objectives.masking import BlockMasking, HiddenRegions, RegionMasking
from diptych.objectives.sampling import Hiding
from diptych.objectives.views import Views
from diptych.protocols import HidesPatches


def hidden_regions(views: Views, masking: RegionMasking | BlockMasking) -> HiddenRegions:
    """The regions shown beside each text, some of them hidden."""
    shown = views.batch.regions if views.batch.matching is None else views.batch.matching.shown
    if not isinstance(shown, Regions) or not isinstance(masking, RegionMasking):
        raise ValueError("this batch has no regions to hide")
    return views.once(("hidden regions", masking), lambda: views.draws.hidden_regions(shown, masking))


def hidden_patches(views: Views, blocks: BlockMasking) -> Bool[Tensor, "b cells"]:
    """Which patches of each image are hidden, on their canvas. Runs no model."""

    def make() -> Tensor:
        image, patch = views.given_image, views.tokenizer.patch
        canvas = type(image).whole(image.pixels[:1]).extents(patch)[0].tolist()
        return views.draws.hidden_patches(image.extents(patch), (canvas[0], canvas[1]), blocks)

    return views.once(("hidden patches", blocks), make)


def codes(views: Views) -> Int[Tensor, "b cells"]:
    """The visual token of each patch, -1 where there is none."""
    return views.once(("codes",), lambda: views.tokenizer(views.given_image))


def hidden_image(views: Views, blocks: BlockMasking) -> Tokens:
    """Each image's tokens with patches hidden, before they meet a text."""
    hidden = hidden_patches(views, blocks)
    return views.once(("hidden image", blocks), lambda: _hiding(views).encode_hidden(views.given_image, hidden))


def hidden_alone(views: Views, blocks: BlockMasking) -> Tokens:
    """The same after they have met each other."""
    return views.once(("hidden alone", blocks), lambda: _hiding(views).alone(hidden_image(views, blocks)))


def hidden_pair(views: Views, hiding: Hiding) -> Pair:
    """Each text with what is shown beside it, words hidden here and regions or patches there."""

    def make() -> Pair:
        text = views.fusing.encode_text(views.masked(hiding.words).text)
        if isinstance(hiding.image, BlockMasking):
            return views.fusing.fuse(text, hidden_image(views, hiding.image))
        return views.fusing.fuse(text, views.encode(hidden_regions(views, hiding.image).regions))

    return views.once(("hidden pair", hiding), make)


def _hiding(views: Views) -> HidesPatches:
    if not isinstance(views.model, HidesPatches):
        raise ValueError(f"{type(views.model).__name__} can hide no patches")
    return views.model
