"""Pixels as one network has them, for another that learned from pixels normalised otherwise."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

MeanStd = tuple[tuple[float, float, float], tuple[float, float, float]]
"""The mean and std of each channel: colours x from 0 to 1 become (x − mean) / std."""

CENTRED: MeanStd = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Pixels in [-1, 1]."""


def renormalize(pixels: Float[Tensor, "*b 3 h w"], given: MeanStd, wanted: MeanStd) -> Float[Tensor, "*b 3 h w"]:
    """Pixels that were normalised as `given`, as `wanted`; the same tensor where these are equal."""
    if given == wanted:
        return pixels
    mean, std, mean_wanted, std_wanted = (pixels.new_tensor(x)[:, None, None] for x in (*given, *wanted))
    return torch.addcmul((mean - mean_wanted) / std_wanted, pixels, std / std_wanted)
