"""Means and deviations of what a CNN's stages see: `python -m bench.hypercolumns --data flickr8k/` writes models/hypercolumns.npz.

They are of the small recipes' boxes (recipes/frozen.py) in photographs at even distances of the training split, and measured once:
to measure them again changes what every run on hypercolumns is shown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from diptych.data.regions.arrays import fixed_boxes
from diptych.data.regions.frozen_features import ExtractedFeatures, pooled
from diptych.data.sources.captions import open_captions
from diptych.encoders import hypercolumns
from diptych.encoders.efficientnet import FrozenCNN
from diptych.encoders.hypercolumns import Hypercolumns
from diptych.models.common_recipes import IMAGES, SCALES
from diptych.utils.cache import MemoryCache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="captions with a train split")
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(hypercolumns.__file__).with_suffix(".npz"))
    asked = parser.parse_args()
    source, boxes = open_captions(asked.data, "train", least=IMAGES.shorter_side), torch.from_numpy(fixed_boxes(SCALES))
    nothing = np.zeros(Hypercolumns.width)
    columns = Hypercolumns(FrozenCNN(0), (nothing, nothing + 1))
    seen = ExtractedFeatures(columns.extract, columns.name, IMAGES, MemoryCache(0))
    photos = track(np.linspace(0, len(source), asked.photos, endpoint=False, dtype=int), description="photos")
    told = torch.cat([pooled(seen.of(source, int(i))["grid"].float(), boxes) for i in photos])
    deviation = told.std(0).clamp(min=1e-3 * float(told.std()))
    np.savez(asked.out, mean=told.mean(0).half().numpy(), deviation=deviation.half().numpy())
    print(f"{asked.out}: {len(told)} boxes of {asked.photos} photographs")


if __name__ == "__main__":
    main()
