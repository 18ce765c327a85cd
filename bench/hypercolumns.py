"""Mean and deviation of a CNN's hypercolumns: `python -m bench.hypercolumns --data flickr8k/` writes hypercolumns.npz.

Measured once, on the boxes of the small recipes (models/common_recipes.py) in evenly spaced photos of the training
split, and stored in encoders/: measuring again would change the inputs of every run on hypercolumns.
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
from diptych.models.common_recipes import BOX_SCALES, IMAGES
from diptych.utils.feature_cache import MemoryCache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="captions with a train split")
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(hypercolumns.__file__).with_suffix(".npz"))
    options = parser.parse_args()
    source, boxes = (
        open_captions(options.data, "train", min_side=IMAGES.shorter_side),
        torch.from_numpy(fixed_boxes(BOX_SCALES)),
    )
    zeros = np.zeros(Hypercolumns.width)
    columns = Hypercolumns(FrozenCNN(0), (zeros, zeros + 1))
    features = ExtractedFeatures(columns.extract, columns.name, IMAGES, MemoryCache(0))
    photos = track(np.linspace(0, len(source), options.photos, endpoint=False, dtype=int), description="photos")
    values = torch.cat([pooled(features.of(source, int(i))["grid"].float(), boxes) for i in photos])
    deviation = values.std(0).clamp(min=1e-3 * float(values.std()))
    np.savez(options.out, mean=values.mean(0).half().numpy(), deviation=deviation.half().numpy())
    print(f"{options.out}: {len(values)} boxes of {options.photos} photos")


if __name__ == "__main__":
    main()
