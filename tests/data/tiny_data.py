"""Small generated datasets: coloured images with captions, in every format that the loaders read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from diptych.data.sources.base import BadSample, Question


def image_bytes(seed: int = 0, size: tuple[int, int] = (40, 30), format: str = "JPEG", **options) -> bytes:
    """The file of a smooth random image; `size` is (width, height)."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    out = io.BytesIO()
    Pillow.fromarray(small).resize(size, Pillow.Resampling.BICUBIC).save(out, format, **options)
    return out.getvalue()


def write_images(folder: Path, n: int) -> list[str]:
    """Writes `n` images of two shapes into ``folder/images``; their names."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = [f"{i:03d}.jpg" for i in range(n)]
    for i, name in enumerate(names):
        (folder / "images" / name).write_bytes(image_bytes(i, (40, 30) if i % 2 else (30, 44)))
    return names


def write_karpathy(folder: Path, n: int = 12, captions: int = 2) -> Path:
    """Writes a Karpathy folder of `n` train images; captions grow longer with the image's number."""
    images = [
        {
            "filename": name,
            "split": "train" if i % 2 else "restval",
            "sentences": [{"raw": f"picture {i} " + "word " * ((i + j) % 7)} for j in range(captions)],
        }
        for i, name in enumerate(write_images(folder, n))
    ]
    path = folder / "dataset_tiny.json"
    path.write_text(json.dumps({"images": images}))
    return path


class Colours:
    """Images of one grey each, which encodes the image's number; image `bad` cannot be read."""

    name, split = "colours", "train"

    def __init__(self, n: int, bad: frozenset[int] = frozenset(), caption: str = "grey"):
        self.n, self.bad, self.caption = n, bad, caption

    def __len__(self) -> int:
        return self.n

    def image(self, index: int) -> Pillow.Image:
        if index in self.bad:
            raise BadSample(self.where(index), "broken")
        return Pillow.new("RGB", (16, 16), (index,) * 3)

    def captions(self, index: int) -> tuple[str, ...]:
        return (f"{self.caption} {index}", f"image number {index}") if self.caption else ("",)

    def where(self, index: int) -> str:
        return f"image {index}"

    def question(self, index: int) -> Question:
        return Question(100 + index, index % 3, f"which {index}?", ("Grey",) * 2 + ("blue",) * 8)
