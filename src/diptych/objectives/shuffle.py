"""Which patches stay where only some may: an order drawn for each image, of which the first are kept."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.tokens import Tokens


def patches_of(image: Tokens) -> Bool[Tensor, "b n"]:
    """Which tokens are real patches."""
    patch = torch.cat([torch.full((s.length,), s.name == "patches") for s in image.layout.spans])
    return image.real & patch.to(image.real.device)


def order_of(image: Tokens, noise: Float[Tensor, "b m"]) -> Int[Tensor, "b n"]:
    """The place of each patch when its image's are sorted by `noise`; what is no patch stands behind.

    A patch has the noise of its place in its own image, in raster order, whatever canvas the image lies on.
    """
    candidate = patches_of(image)
    place = (candidate.cumsum(1) - 1).clamp(min=0)
    return noise.gather(1, place).masked_fill(~candidate, torch.inf).argsort(1).argsort(1)


def first_of(image: Tokens, order: Int[Tensor, "b n"], most: int | Int[Tensor, "b 1"]) -> Bool[Tensor, "b n"]:
    """All that is no patch, and the first `most` patches of each image."""
    return image.real & (~patches_of(image) | (order < most))
