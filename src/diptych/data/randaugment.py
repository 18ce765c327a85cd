"""RandAugment (Cubuk et al., 2020, arXiv 1909.13719): a few operations drawn at random, all of one strength.

The operations and ranges are ViLT's (vilt/transforms/randaug.py): those of EfficientNet's published code without colour
inversion and cutout, since captions speak of colours and of small objects. Strength runs from 0 to 30; 9 is ViLT's.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np
from PIL import Image as Pillow
from PIL import ImageEnhance, ImageOps

STRONGEST = 30


def _affine(picture: Pillow.Image, *matrix: float) -> Pillow.Image:
    return picture.transform(picture.size, Pillow.Transform.AFFINE, matrix)


def _solarize_add(picture: Pillow.Image, amount: float) -> Pillow.Image:
    """Adds `amount` to all values, then inverts what lies in the lighter half."""
    brighter = [min(255, int(v + amount)) for v in range(256)]
    return picture.point([v if v < 128 else 255 - v for v in brighter] * 3)


# Each takes the picture and a strength in [0, 1], whose sign may be turned where the operation has a direction. Shifts
# are in pixels, whatever the picture's size.
_UNDIRECTED: dict[str, Callable[[Pillow.Image, float], Pillow.Image]] = {
    "autocontrast": lambda p, s: ImageOps.autocontrast(p),
    "equalize": lambda p, s: ImageOps.equalize(p),
    "posterize": lambda p, s: ImageOps.posterize(p, max(1, int(4 * s))),
    "solarize": lambda p, s: ImageOps.solarize(p, ceil(256 * s)),
    "solarize_add": lambda p, s: _solarize_add(p, 110 * s),
    "color": lambda p, s: ImageEnhance.Color(p).enhance(0.1 + 1.8 * s),
    "contrast": lambda p, s: ImageEnhance.Contrast(p).enhance(0.1 + 1.8 * s),
    "brightness": lambda p, s: ImageEnhance.Brightness(p).enhance(0.1 + 1.8 * s),
    "sharpness": lambda p, s: ImageEnhance.Sharpness(p).enhance(0.1 + 1.8 * s),
}
_DIRECTED: dict[str, Callable[[Pillow.Image, float], Pillow.Image]] = {
    "rotate": lambda p, s: p.rotate(30 * s),
    "shear_x": lambda p, s: _affine(p, 1.0, 0.3 * s, 0.0, 0.0, 1.0, 0.0),
    "shear_y": lambda p, s: _affine(p, 1.0, 0.0, 0.0, 0.3 * s, 1.0, 0.0),
    "translate_x": lambda p, s: _affine(p, 1.0, 0.0, 100 * s, 0.0, 1.0, 0.0),
    "translate_y": lambda p, s: _affine(p, 1.0, 0.0, 0.0, 0.0, 1.0, 100 * s),
}
OPERATIONS = (*_UNDIRECTED, *_DIRECTED)


def apply(picture: Pillow.Image, operation: str, strength: float) -> Pillow.Image:
    """One named operation at a strength in [0, 1]; [-1, 1] for those with a direction."""
    return (_UNDIRECTED | _DIRECTED)[operation](picture, strength)


def randaugment(
    picture: Pillow.Image, random: np.random.Generator, operations: int = 2, strength: float = 9.0
) -> Pillow.Image:
    """An RGB picture of the same size after `operations` draws (with repetition) at `strength` of 30."""
    for name in random.choice(OPERATIONS, operations):
        sign = random.choice([-1, 1]) if name in _DIRECTED else 1
        picture = apply(picture, str(name), sign * strength / STRONGEST)
    return picture
