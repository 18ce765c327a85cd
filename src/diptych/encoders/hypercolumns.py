"""Hypercolumns (Hariharan et al., CVPR 2015): all that a frozen CNN sees at a place, from its early stages to its last.

The last map knows what kind of thing there is, as far as ImageNet's classes tell it, and has forgotten colours and textures,
which captions speak of; earlier ones have not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from diptych.encoders.efficientnet import FrozenCNN
from diptych.utils.cache import Arrays, digest

STAGES = (4, 7, 10, 14, 15)
"""Blocks of EfficientNet-lite0 that end a stage: 40 and 80 channels, 112, 192 and 320. Two before them see little yet."""


class Hypercolumns:
    """A frozen CNN's last map, and beside each cell of it the means of what its earlier stages saw there: 2,024 channels.

    A picture and its mirror image are both looked at, and what is kept of a place is the mean of the two (docs/decisions/0011).
    Cells of the two show the same place where the picture's width is a multiple of 32, as all recipes have it.

    Each is told from its mean, in units of its deviation (`standard`, measured by `python -m bench.hypercolumns`), so that
    those of large values do not drown the others.
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
        """What is seen in one picture that is normalised to [-1, 1], in half precision: ``grid`` (rows, columns, 2024)."""
        seen, mirrored = self._columns(pixels), self._columns(pixels.flip(-1))
        return {"grid": ((seen + mirrored.flip(-1)) / 2).permute(1, 2, 0).half().cpu().contiguous()}

    def project(self, pooled: Float[Tensor, "*n 2024"]) -> tuple[Float[Tensor, "*n 2024"], Float[Tensor, "*n 1000"]]:
        """Standardised features of some parts of a picture, and ImageNet's classes of each."""
        return (pooled - self.mean) / self.deviation, self.cnn.classify(pooled[..., : FrozenCNN.width])

    def _columns(self, pixels: Float[Tensor, "3 h w"]) -> Float[Tensor, "2024 rows columns"]:
        *stages, last = self.cnn.stages(pixels, STAGES)
        rows, columns = last.shape[-2:]
        cells = (adaptive_avg_pool2d(stage, (rows, columns)) for stage in stages)
        return torch.cat([last, *cells], 1)[0]
