"""RandAugment (Cubuk et al., 2020, arXiv 1909.13719): a few operations drawn at random, all of one strength.

The operations and ranges are ViLT's (vilt/transforms/randaug.py): those of EfficientNet's published code without colour
inversion and cutout, since captions speak of colours and of small objects. Strength runs from 0 to 30; 9 is ViLT's.

From a picture to the pixels a model reads: ViLT's resize rule, the plain square of ViT, and normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageEnhance, ImageOps

from diptych.batch import Image
from diptych.config.data import ImageSettings

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


def resized(height: int, width: int, settings: ImageSettings) -> tuple[int, int]:
    """Height and width after ViLT's rule (its MinMaxResize): the shorter side to S, the longer capped at
    ``int(ratio · S)``, both floored to a multiple of the patch; never less than one patch. Where a square is cut out
    afterwards, the shorter side to S and the longer in proportion, rounded down."""
    if settings.square:
        return settings.shorter_side, settings.square_width or settings.shorter_side
    if settings.crop:
        longer = settings.shorter_side * max(height, width) // min(height, width)
        return (settings.shorter_side, longer) if height < width else (longer, settings.shorter_side)
    scale = settings.shorter_side / min(height, width)
    longest = int(settings.longer_ratio * settings.shorter_side)
    if scale * max(height, width) > longest:
        scale = longest / max(height, width)
    patch = settings.patch_size
    tall, wide = (max(patch, int(scale * side + 0.5) // patch * patch) for side in (height, width))
    return tall, wide


def transform(picture: Pillow.Image, settings: ImageSettings, random: np.random.Generator | None = None) -> np.ndarray:
    """uint8 pixels ``(height, width, 3)``: augmented with `random` where `settings.augment`, then resized, then cropped.

    As ViLT augments: shifts are of so many pixels of the picture as it came. Differs: a large JPEG may come smaller than
    its file is (data/decode.py), and is then shifted by more of its side.
    """
    if settings.augment:
        if random is None:
            raise ValueError("augmentation needs a generator")
        picture = randaugment(picture, random)
    height, width = resized(picture.height, picture.width, settings)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Pillow.Resampling[settings.resample.upper()])
    if settings.crop:
        left, top = (width - settings.crop) // 2, (height - settings.crop) // 2
        picture = picture.crop((left, top, left + settings.crop, top + settings.crop))
    return np.array(picture)  # a copy: torch wants to be able to write


def stack(pictures: Sequence[np.ndarray], settings: ImageSettings) -> Image:
    """Normalised pictures, each top-left in a zero canvas."""
    sizes = torch.tensor([p.shape[:2] for p in pictures])
    height, width = sizes.amax(0).tolist()
    canvas = torch.zeros(len(pictures), 3, height, width)
    for row, picture in zip(canvas, pictures, strict=True):
        h, w = picture.shape[:2]
        row[:, :h, :w] = normalise(picture, settings)
    return Image(canvas, sizes)


def normalise(picture: np.ndarray, settings: ImageSettings) -> torch.Tensor:
    """uint8 ``(h, w, 3)`` to float ``(3, h, w)``: ``(x / 255 − mean) / std`` of each channel."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1).float()
    scale = torch.tensor([1 / (255 * std) for std in settings.std])
    shift = torch.tensor([mean / std for mean, std in zip(settings.mean, settings.std, strict=True)])
    return pixels.mul_(scale[:, None, None]).sub_(shift[:, None, None])
