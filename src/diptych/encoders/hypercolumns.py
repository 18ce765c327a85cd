"""Hypercolumns (Hariharan et al., CVPR 2015): a frozen CNN's features of several stages, concatenated per cell.

The last feature map encodes ImageNet's object classes but hardly colours and textures, which captions mention; earlier
maps do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from diptych.encoders.efficientnet import FrozenCNN
from diptych.utils.feature_cache import Arrays, digest

STAGES = (4, 7, 10, 14, 15)
"""Blocks of EfficientNet-lite0 that end a stage, of 40, 80, 112, 192 and 320 channels; two earlier ones add little."""


class Hypercolumns:
    """A frozen CNN's last feature map with the mean-pooled maps of earlier stages: 2,024 channels per cell.

    Features are averaged with those of the horizontal flip (docs/decisions/0011). Cells of the two correspond where the
    image width is a multiple of 32, as in all recipes.

    `standard`: mean and standard deviation per channel (measured by `python -m bench.hypercolumns`), by which channels
    are standardised, so that those with large values do not dominate.
    """

    width = FrozenCNN.width + 40 + 80 + 112 + 192 + 320

    def __init__(self, cnn: FrozenCNN, standard: tuple[np.ndarray, np.ndarray] | None = None):
        self.cnn = cnn
        if standard is None:
            with np.load(Path(__file__).with_name("hypercolumns.npz"), allow_pickle=False) as measured:
                standard = measured["mean"], measured["deviation"]
        self.mean, self.deviation = (torch.from_numpy(part).float() for part in standard)
        self.name = digest("hypercolumns, mirrored too", cnn.name, self.mean, self.deviation)

    def extract(self, pixels: Float[Tensor, "3 h w"]) -> Arrays:
        """Features of one image with pixels in [-1, 1], in half precision: ``grid`` (rows, columns, 2024)."""
        features, flipped = self._columns(pixels), self._columns(pixels.flip(-1))
        return {"grid": ((features + flipped.flip(-1)) / 2).permute(1, 2, 0).half().cpu().contiguous()}

    def project(self, pooled: Float[Tensor, "*n 2024"]) -> tuple[Float[Tensor, "*n 2024"], Float[Tensor, "*n 1000"]]:
        """Standardised features of image regions, and ImageNet class probabilities of each."""
        return (pooled - self.mean) / self.deviation, self.cnn.classify(pooled[..., : FrozenCNN.width])

    def _columns(self, pixels: Float[Tensor, "3 h w"]) -> Float[Tensor, "2024 rows columns"]:
        *stages, last = self.cnn.stages(pixels, STAGES)
        rows, columns = last.shape[-2:]
        cells = (adaptive_avg_pool2d(stage, (rows, columns)) for stage in stages)
        return torch.cat([last, *cells], 1)[0]
