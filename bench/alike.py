"""Cosines between different photos and between a photo and its copies: the basis of capfilt's `--duplicate_cosine`.

    python -m bench.alike --data flickr8k/ --images 6000 --copies 300 [--run RUN ...]

Of a frozen CNN's mean feature, and of each RUN's image embedding: for all pairs of different photos, and for photos
and their copies, which are recompressed, cropped, mirrored, downscaled or grey. Prints, for each threshold, the
number of pairs above it (a few are of one scene) and the fraction of the copies.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageOps

from diptych.batch import Batch
from diptych.capfilt.models import cnn_embedding, cnn_loader
from diptych.data.images.decode import decode
from diptych.data.images.loading import image_loader, with_images
from diptych.data.sources.captions import open_captions
from diptych.modules.tokens import packing
from diptych.runs.load_model import load_model
from diptych.tasks.common import encode_images
from diptych.tasks.pair_scores import image_embedding

OVER = (0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)


def jpeg(picture: Pillow.Image, quality: int = 95) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def middle(picture: Pillow.Image, share: float) -> Pillow.Image:
    """The centre crop with a fraction `share` of the area."""
    (w, h), off = picture.size, (1 - share**0.5) / 2
    return picture.crop((round(off * w), round(off * h), round(w - off * w), round(h - off * h)))


COPIES: dict[str, Callable[[Pillow.Image], bytes]] = {
    "JPEG 75": lambda p: jpeg(p, 75),
    "JPEG 30": lambda p: jpeg(p, 30),
    "half the size": lambda p: jpeg(p.resize((p.width // 2, p.height // 2), Pillow.Resampling.LANCZOS), 90),
    "90 % cut out": lambda p: jpeg(middle(p, 0.9)),
    "70 % cut out": lambda p: jpeg(middle(p, 0.7)),
    "mirrored": lambda p: jpeg(ImageOps.mirror(p)),
    "grey": lambda p: jpeg(p.convert("L").convert("RGB")),
}


@dataclass
class Files:
    """A dataset of encoded images in memory (see `data.images.loading`)."""

    data: Sequence[bytes]
    name: str = "photos"
    split: str = ""

    def __len__(self) -> int:
        return len(self.data)

    def file(self, index: int) -> bytes:
        return self.data[index]

    def image(self, index: int) -> Pillow.Image:
        return decode(self.data[index], self.where(index))

    def stem(self, index: int) -> str:
        return str(index)

    def where(self, index: int) -> str:
        return f"photo {index}"


def vectors(data: Sequence[bytes], folder: str) -> np.ndarray:
    """The unit-norm embedding of each image, by the run in `folder`; without a folder, by the CNN."""
    loaded = load_model(Path(folder), torch.device("cpu")) if folder else None
    loader, files, parts = image_loader(loaded.image_input if loaded else cnn_loader()), Files(data), []
    for first in range(0, len(data), 64):
        ids = list(range(first, min(first + 64, len(data))))
        batch = with_images(Batch(0, 0, torch.tensor(ids)), loader.stack([loader.load(files, i, None) for i in ids]))
        with torch.no_grad(), packing():
            if loaded:
                parts.append(image_embedding(loaded, encode_images(loaded.model, batch)))
            else:
                parts.append(cnn_embedding(batch))
    return torch.cat(parts).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--copies", type=int, default=300)
    parser.add_argument("--run", action="append", default=[], help="a run folder")
    options = parser.parse_args()
    photos = open_captions(options.data, "train")
    files = [photos.file(i) for i in range(min(options.images, len(photos)))]  # type: ignore[attr-defined]
    pictures = [photos.image(i) for i in range(min(options.copies, len(files)))]
    for folder in ("", *options.run):
        own = vectors(files, folder)
        cosines = (own @ own.T)[np.triu_indices(len(own), 1)]
        print(f"\n| {folder or 'cnn'} over | {' | '.join(map(str, OVER))} |\n|---|{'---:|' * len(OVER)}")
        print(f"| of {len(cosines):,} pairs | {' | '.join(str((cosines > over).sum()) for over in OVER)} |")
        for name, alter in COPIES.items():
            like = (vectors([alter(p) for p in pictures], folder) * own[: len(pictures)]).sum(1)
            print(f"| {name} | {' | '.join(f'{(like > over).mean():.0%}' for over in OVER)} |", flush=True)


if __name__ == "__main__":
    main()
