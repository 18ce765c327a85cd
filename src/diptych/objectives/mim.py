"""Masked image modeling (MIM) on pixels: masked patches, reconstructed from the visible ones (MAE)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.batch import Image
from diptych.config.objectives import MIM
from diptych.modules.tokens import Tokens
from diptych.objectives.definition import Definition, Needs
from diptych.objectives.masking import first_patches, patch_mask
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, MaskedAutoencoder


class Reconstruction(NamedTuple):
    """A reconstruction. `order`: the random rank of each patch, of which the first stay visible."""

    order: Int[Tensor, "b n"]
    visible: Tokens
    predicted: Tokens  # pixels of all patches
    masked: Bool[Tensor, "b cells"]


@dataclass(frozen=True)
class MIMLoss:
    """Mean squared error of pixels at the masked patches (MAE, sections 3 and 4.1).

    `ratio`: the fraction of each image's patches that is masked. `normalise`: the targets are each patch's pixels,
    normalised by their mean and standard deviation.
    """

    name: str = "mim"
    weight: float = 1.0
    ratio: float = 0.75
    normalise: bool = True

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        patch_size = reconstructor(views).patch_size
        patches = ((views.image_input.sizes + patch_size - 1) // patch_size).prod(1)
        return {self.name: (patches - self.num_visible(patches)).sum().float()}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        output = self.reconstruction(views)
        target = patch_pixels(views.image_input, reconstructor(views).patch_size)[output.masked].float()
        if self.normalise:
            target = (target - target.mean(1, keepdim=True)) / (target.var(1, keepdim=True) + 1e-6).sqrt()
        return {self.name: (output.predicted.gather(output.masked).float() - target).square().mean(1).sum()}

    def reconstruction(self, views: Views) -> Reconstruction:
        """The model's reconstruction of the batch, with a random part of the patches masked."""
        model = reconstructor(views)
        patches = model.embed_image(views.image_input)
        order = views.draws.order_patches(patches)
        keep = first_patches(patches, order, self.num_visible(patch_mask(patches).sum(1, keepdim=True)))
        visible = model.encode_visible(patches.apply_mask(keep))
        predicted = model.reconstruct(visible, patches.layout)
        visible_mask = visible.select(name="patches").mask
        return Reconstruction(order, visible, predicted, predicted.mask & ~visible_mask)

    def num_visible(self, patches: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
        """How many of `patches` patches stay visible, rounded down. Float64: 1 - 0.75 is exact, 1 - 0.6 nearly."""
        return (patches.double() * (1 - self.ratio)).long()

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """The variance of normalised pixels: 1."""
        if not self.normalise:
            return None
        return ChanceLoss(
            1.0,
            "predicting each patch's mean pixel",
            "the visible patches are not used yet: check positions and warm-up",
        )


def patch_pixels(image: Image, patch_size: int) -> Float[Tensor, "b cells v"]:
    """Each patch's pixels, by row, column and channel."""
    return rearrange(image.pixels, "b c (i p) (j q) -> b (i j) (p q c)", p=patch_size, q=patch_size)


def reconstructor(views: Views) -> MaskedAutoencoder:
    """The model, checked to be a masked autoencoder. Raises ValueError."""
    if not isinstance(views.model, MaskedAutoencoder):
        raise ValueError(f"{type(views.model).__name__} is not a masked autoencoder, which the MIM loss needs")
    return views.model


DEFINITION = Definition(
    MIM,
    needs=lambda _: Needs((MaskedAutoencoder,), text=False),
    losses=lambda mim, _: [MIMLoss(weight=mim.weight, ratio=mim.rate)],
)
