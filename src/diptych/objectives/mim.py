"""Masked image modelling: what do the patches that are hidden look like, given those that are not?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.batch import Image
from diptych.modules.tokens import Tokens
from diptych.objectives.masking import first_patches, num_patches
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, MaskedAutoencoder


class Reconstruction(NamedTuple):
    """What was made of the hidden patches. `order`: that in which patches were drawn, the first of them to be kept."""

    order: Int[Tensor, "b n"]
    visible: Tokens
    predicted: Tokens  # of the patches
    hidden: Bool[Tensor, "b cells"]


@dataclass(frozen=True)
class MIM:
    """Mean squared error of pixels at the hidden patches alone (MAE, sections 3 and 4.1).

    `ratio`: share of each image's patches that are hidden. `normalise`: a patch's pixels less their mean, over their
    deviation, are what is predicted.
    """

    name: str = "mim"
    weight: float = 1.0
    ratio: float = 0.75
    normalise: bool = True

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        cells = (
            (views.image_input.sizes + reconstructor(views).patch_size - 1) // reconstructor(views).patch_size
        ).prod(1)
        return {self.name: (cells - self.kept(cells)).sum().float()}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        made = self.reconstruction(views)
        target = patch_pixels(views.image_input, reconstructor(views).patch_size)[made.hidden].float()
        if self.normalise:
            target = (target - target.mean(1, keepdim=True)) / (target.var(1, keepdim=True) + 1e-6).sqrt()
        return {self.name: (made.predicted.gather(made.hidden).float() - target).square().mean(1).sum()}

    def reconstruction(self, views: Views) -> Reconstruction:
        model = reconstructor(views)
        patches = model.embed_image(views.image_input)
        order = views.draws.order_patches(patches)
        kept = first_patches(patches, order, self.kept(num_patches(patches).sum(1, keepdim=True)))
        visible = model.encode_visible(patches.apply_mask(kept))
        predicted = model.reconstruct(visible, patches.layout)
        shown = visible.select(name="patches").mask
        return Reconstruction(order, visible, predicted, predicted.mask & ~shown)

    def kept(self, patches: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
        """How many of so many patches stay, rounded down. Float64: 1 - 0.75 is exact, 1 - 0.6 nearly."""
        return (patches.double() * (1 - self.ratio)).long()

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """The variance of normalised pixels: 1."""
        if not self.normalise:
            return None
        return ChanceLoss(
            1.0, "loss of every hidden patch grey", "the visible patches are not yet read: check positions and warm-up"
        )


def patch_pixels(image: Image, patch_size: int) -> Float[Tensor, "b cells v"]:
    """Each patch's pixels, by row, column and channel."""
    return rearrange(image.pixels, "b c (i p) (j q) -> b (i j) (p q c)", p=patch_size, q=patch_size)


def reconstructor(views: Views) -> MaskedAutoencoder:
    """The model, which must know how to guess hidden patches. Raises ValueError."""
    if not isinstance(views.model, MaskedAutoencoder):
        raise ValueError(f"{type(views.model).__name__} reconstructs no patches")
    return views.model
