"""Pixel normalisation, and conversion between two of them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

MeanStd = tuple[tuple[float, float, float], tuple[float, float, float]]
"""The mean and std per channel: colours x in [0, 1] become (x − mean) / std."""

CENTRED: MeanStd = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Pixels in [-1, 1]."""


def renormalize(pixels: Float[Tensor, "*b 3 h w"], source: MeanStd, target: MeanStd) -> Float[Tensor, "*b 3 h w"]:
    """Pixels normalised by `source`, converted to normalisation by `target`; the same tensor if these are equal."""
    if source == target:
        return pixels
    mean, std, target_mean, target_std = (pixels.new_tensor(x)[:, None, None] for x in (*source, *target))
    return torch.addcmul((mean - target_mean) / target_std, pixels, std / target_std)
