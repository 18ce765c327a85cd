"""Image transforms: RandAugment, resizing, cropping and normalisation.

RandAugment (Cubuk et al., 2020, arXiv 1909.13719) applies a few random operations of one magnitude, from 0 to 30; ViLT
uses 9. Source: operations and ranges are ViLT's (vilt/transforms/randaug.py): those of EfficientNet's published code
without colour inversion and cutout, because captions mention colours and small objects.
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

MAX_MAGNITUDE = 30


def _affine(image: Pillow.Image, *matrix: float) -> Pillow.Image:
    return image.transform(image.size, Pillow.Transform.AFFINE, matrix)


def _solarize_add(image: Pillow.Image, amount: float) -> Pillow.Image:
    """Adds `amount` to all values, then inverts those in the upper half."""
    brighter = [min(255, int(v + amount)) for v in range(256)]
    return image.point([v if v < 128 else 255 - v for v in brighter] * 3)


# Each takes the image and a strength in [0, 1], negated at random if the operation has a direction. Translations are
# in pixels, whatever the image size.
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


def apply(image: Pillow.Image, operation: str, strength: float) -> Pillow.Image:
    """One operation, by name, at a strength in [0, 1], or [-1, 1] for operations with a direction."""
    return (_UNDIRECTED | _DIRECTED)[operation](image, strength)


def randaugment(
    image: Pillow.Image, random: np.random.Generator, operations: int = 2, strength: float = 9.0
) -> Pillow.Image:
    """RGB image of the same size after `operations` random operations (with repetition) of magnitude `strength`."""
    for name in random.choice(OPERATIONS, operations):
        sign = random.choice([-1, 1]) if name in _DIRECTED else 1
        image = apply(image, str(name), sign * strength / MAX_MAGNITUDE)
    return image


def resized(height: int, width: int, settings: ImageSettings) -> tuple[int, int]:
    """Height and width after resizing, in pixels.

    ViLT's rule (its MinMaxResize): the shorter side becomes S = `shorter_side`, the longer is capped at
    ``int(longer_ratio * S)``, both rounded down to a multiple of the patch size, and to at least one patch. Where a
    square is cropped afterwards: the shorter side becomes S and the longer is in proportion, rounded down.
    """
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


def visible_area(height: int, width: int, settings: ImageSettings) -> tuple[float, float, float, float]:
    """The part of an image that `transform` keeps: x1, y1, x2, y2 as shares of its width and height."""
    if not settings.crop:
        return 0.0, 0.0, 1.0, 1.0
    height, width = resized(height, width, settings)
    left, top, right, bottom = _centre(height, width, settings.crop)
    return left / width, top / height, right / width, bottom / height


def _centre(height: int, width: int, side: int) -> tuple[int, int, int, int]:
    """The square of this side in the centre: left, top, right, bottom."""
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def transform(image: Pillow.Image, settings: ImageSettings, random: np.random.Generator | None = None) -> np.ndarray:
    """uint8 pixels ``(height, width, 3)``: augmented with `random` if `settings.augment`, resized, then cropped.

    Source: like ViLT, translations are in pixels of the original image. Differs: a large JPEG may be decoded at a
    reduced size (images/decode.py), and is then translated by a larger share of its side.
    """
    if settings.augment:
        if random is None:
            raise ValueError("settings.augment is set, but no random generator was passed: pass `random`")
        image = randaugment(image, random)
    height, width = resized(image.height, image.width, settings)
    if image.size != (width, height):
        image = image.resize((width, height), Pillow.Resampling[settings.resample.upper()])
    if settings.crop:
        image = image.crop(_centre(height, width, settings.crop))
    return np.array(image)  # a copy, because torch needs writable memory


def stack(images: Sequence[np.ndarray], settings: ImageSettings) -> Image:
    """Normalised images, each at the top left of a zero-padded canvas."""
    sizes = torch.tensor([p.shape[:2] for p in images])
    height, width = sizes.amax(0).tolist()
    canvas = torch.zeros(len(images), 3, height, width)
    for row, image in zip(canvas, images, strict=True):
        h, w = image.shape[:2]
        row[:, :h, :w] = normalise(image, settings)
    return Image(canvas, sizes)


def normalise(image: np.ndarray, settings: ImageSettings) -> torch.Tensor:
    """float ``(3, h, w)`` from uint8 ``(h, w, 3)``: ``(x / 255 - mean) / std`` per channel."""
    pixels = torch.from_numpy(image).permute(2, 0, 1).float()
    scale = torch.tensor([1 / (255 * std) for std in settings.std])
    shift = torch.tensor([mean / std for mean, std in zip(settings.mean, settings.std, strict=True)])
    return pixels.mul_(scale[:, None, None]).sub_(shift[:, None, None])
