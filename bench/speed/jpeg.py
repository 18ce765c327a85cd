"""From a JPEG's bytes to normalised pixels, by what our loader calls, beside torchvision's transforms on Pillow images.

The pictures are generated: gradients with noise. Ours decodes a large JPEG at 1/2, 1/4 or 1/8 where that is not smaller
than the result, so that its pixels differ.
"""

from __future__ import annotations

import io
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from bench.speed import peers
from bench.speed.harness import Check, Work
from diptych.config.data import CLIP_MEAN, CLIP_STD, ImageSettings
from diptych.data.images.decode import decode
from diptych.data.images.transforms import stack, transform

LEVELS = 255 * 0.27  # grey levels in one unit of normalised pixels
TORCHVISION, PROCESSOR = f"{peers.TORCHVISION} with Pillow", f"{peers.HF} processor"


def jpegs(count: int, width: int, height: int) -> list[bytes]:
    random = np.random.default_rng(0)
    files = []
    for _ in range(count):
        corners = random.uniform(0, 255, (2, 2, 3)).astype(np.uint8)
        smooth = np.asarray(Pillow.fromarray(corners).resize((width, height), Pillow.Resampling.BICUBIC), float)
        noisy = (smooth + random.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Pillow.fromarray(noisy).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def load(files: list[bytes], settings: ImageSettings, _: int) -> Tensor:
    decoded = (decode(data, "a generated image", min_side=settings.shorter_side) for data in files)
    return stack([transform(image, settings) for image in decoded], settings).pixels


def with_torchvision(files: list[bytes], side: int) -> peers.Candidate:
    """torchvision's usual transforms of CLIP. Raises ImportError."""
    peers.torchvision()
    transforms: Any = import_module("torchvision.transforms")
    steps = transforms.Compose(
        [
            transforms.Resize(side, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    return lambda _: torch.stack([steps(Pillow.open(io.BytesIO(data)).convert("RGB")) for data in files])


def with_processor(files: list[bytes], side: int) -> peers.Candidate:
    """Hugging Face's image processor of CLIP. Raises ImportError."""
    sizes: dict[str, Any] = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    processor = peers.transformers().CLIPImageProcessor(**sizes)

    def run(_: int) -> Tensor:
        images = [Pillow.open(io.BytesIO(data)) for data in files]
        return processor(images=images, return_tensors="pt")["pixel_values"]

    return run


def work(count: int, width: int, height: int, side: int, limit: float, processor: bool = False) -> Work:
    files = jpegs(count, width, height)
    settings = ImageSettings(shorter_side=side, crop=side, mean=CLIP_MEAN, std=CLIP_STD)
    others = {TORCHVISION: peers.unless_missing(lambda: with_torchvision(files, side))}
    if processor:
        others[PROCESSOR] = peers.unless_missing(lambda: with_processor(files, side))

    def compare(ours: Tensor, theirs: Tensor) -> list[Check]:
        return [Check("mean difference, grey levels of 255", (ours - theirs).abs().mean().item() * LEVELS, limit)]

    return Work(partial(load, files, settings), others, compare)


def large_to_224(_: str) -> Work:
    return work(16, 1600, 1200, 224, 3.0)


def large_to_384(_: str) -> Work:
    return work(16, 1600, 1200, 384, 3.0)


def same_size(_: str) -> Work:
    return work(128, 224, 224, 224, 0.01, processor=True)
