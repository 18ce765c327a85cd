"""How like are photos that differ, and how like is a photo to its copies? What `--alike_over` of `diptych bootstrap` rests on.

    python -m bench.alike --data flickr8k/ --images 6000 --copies 300 [--run RUN ...]

Cosines of a frozen CNN's mean feature, and of each RUN's readout: of all pairs of different photos, and of photos beside copies
of them that were recompressed, cut, mirrored, made smaller or grey. Of each threshold: how many pairs of photos are over it (a
few truly are one scene), and which share of the copies.
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
from diptych.capfilt.models import cnn_pictures, cnn_readout, readout, subject
from diptych.config.capfilt import CapFilt
from diptych.data.images.decode import decode
from diptych.data.images.loading import image_loader, shown_in
from diptych.data.sources.captions import open_captions
from diptych.modules.tokens import packing
from diptych.tasks.common import encode_images

OVER = (0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)


def jpeg(picture: Pillow.Image, quality: int = 95) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def middle(picture: Pillow.Image, share: float) -> Pillow.Image:
    """What is left where all but `share` of the area is cut off."""
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
    """Pictures by their files (see data.shown.Pictured)."""

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
    """A unit vector of each file: the run's readout, or without one the CNN's."""
    role = subject(Path(folder), CapFilt(precision="fp32"), torch.device("cpu")) if folder else None
    shows, files, found = image_loader(role.shows if role else cnn_pictures()), Files(data), []
    for first in range(0, len(data), 64):
        ids = list(range(first, min(first + 64, len(data))))
        batch = shown_in(Batch(0, 0, torch.tensor(ids)), shows.stack([shows.load(files, i, None) for i in ids]))
        with torch.no_grad(), packing():
            found.append(readout(role, encode_images(role.model, batch)) if role else cnn_readout(batch))
    return torch.cat(found).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--copies", type=int, default=300)
    parser.add_argument("--run", action="append", default=[], help="a run folder")
    asked = parser.parse_args()
    photos = open_captions(asked.data, "train")
    files = [photos.file(i) for i in range(min(asked.images, len(photos)))]  # type: ignore[attr-defined]
    pictures = [photos.image(i) for i in range(min(asked.copies, len(files)))]
    for folder in ("", *asked.run):
        own = vectors(files, folder)
        cosines = (own @ own.T)[np.triu_indices(len(own), 1)]
        print(f"\n| {folder or 'cnn'} over | {' | '.join(map(str, OVER))} |\n|---|{'---:|' * len(OVER)}")
        print(f"| of {len(cosines):,} pairs | {' | '.join(str((cosines > over).sum()) for over in OVER)} |")
        for name, alter in COPIES.items():
            like = (vectors([alter(p) for p in pictures], folder) * own[: len(pictures)]).sum(1)
            print(f"| {name} | {' | '.join(f'{(like > over).mean():.0%}' for over in OVER)} |", flush=True)


if __name__ == "__main__":
    main()
