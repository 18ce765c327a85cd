"""From a picture to the pixels a model reads: ViLT's resize rule, the plain square of ViT, and normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image as Pillow

from diptych.data.randaugment import randaugment
from diptych.data.settings import ImageSettings
from diptych.inputs import Image


def resized(height: int, width: int, settings: ImageSettings) -> tuple[int, int]:
    """Height and width after ViLT's rule (its MinMaxResize): the shorter side to S, the longer capped at
    ``int(ratio · S)``, both floored to a multiple of the patch; never less than one patch. Where a square is cut out
    afterwards, the shorter side to S and the longer in proportion, rounded down."""
    if settings.square:
        return settings.shorter, settings.wide or settings.shorter
    if settings.crop:
        longer = settings.shorter * max(height, width) // min(height, width)
        return (settings.shorter, longer) if height < width else (longer, settings.shorter)
    scale = settings.shorter / min(height, width)
    longest = int(settings.longer_ratio * settings.shorter)
    if scale * max(height, width) > longest:
        scale = longest / max(height, width)
    patch = settings.patch
    tall, wide = (max(patch, int(scale * side + 0.5) // patch * patch) for side in (height, width))
    return tall, wide


def prepare(picture: Pillow.Image, settings: ImageSettings, random: np.random.Generator | None = None) -> np.ndarray:
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
