"""One picture at a size of one's own: resized, cut into patches by convolution, given positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.inputs import Image
from diptych.layout import Span
from diptych.tokens import Tokens


class ScaledPatches(nn.Module):
    """Every image resized to a square of `size` pixels, whatever its own, then patches of it behind a class token
    (CrossViT, section 3.2).

    `stem`: three convolutions make the patches (the paper's †); else one, of a patch's size.
    """

    def __init__(self, size: int, patch: int, width: int, stem: bool = False):
        super().__init__()
        if size % patch:
            raise ValueError(f"{size} pixels do not divide into patches of {patch}")
        self.size, self.grid = size, (size // patch, size // patch)
        self.project = conv_stem(patch, width) if stem else nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], width))
        nn.init.trunc_normal_(self.cls, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, image: Image) -> Tokens:
        patches = self.project(fitted(image, self.size)).flatten(2).mT
        values = torch.cat([self.cls.expand(len(image), -1, -1), patches], 1) + self.position
        real = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        return Tokens.of(
            values, real, Span("image", "cls", 1), Span("image", "patches", patches.shape[1], grid=self.grid)
        )


STRIDES = {12: ((4, 3), (3, 0), (1, 1)), 16: ((4, 3), (2, 1), (2, 1))}
"""By patch: stride and padding of each convolution of a stem."""


def conv_stem(patch: int, width: int) -> nn.Sequential:
    """Three convolutions of growing width in place of one; the first sees 7 pixels, the others 3 cells. Raises ValueError."""
    if patch not in STRIDES or width % 4:
        raise ValueError(
            f"a stem makes patches of {' or '.join(map(str, STRIDES))} of a width divisible by 4, not {patch}"
        )
    (s1, p1), (s2, p2), (s3, p3) = STRIDES[patch]
    return nn.Sequential(
        nn.Conv2d(3, width // 4, 7, s1, p1),
        nn.ReLU(),
        nn.Conv2d(width // 4, width // 2, 3, s2, p2),
        nn.ReLU(),
        nn.Conv2d(width // 2, width, 3, s3, p3),
    )


def fitted(image: Image, side: int) -> Float[Tensor, "b c side side"]:
    """Each image, without its padding, as a square: bicubic, corners not aligned, no antialiasing (as torch's
    interpolate). Images of one size share one resize.
    """
    shapes, which = torch.unique(image.sizes, dim=0, return_inverse=True)
    square = image.pixels.new_empty(*image.pixels.shape[:2], side, side)
    for i, (height, width) in enumerate(shapes.tolist()):
        part = image.pixels[which == i, :, :height, :width]
        if (height, width) != (side, side):
            part = F.interpolate(part, (side, side), mode="bicubic", align_corners=False)
        square[which == i] = part
    return square
