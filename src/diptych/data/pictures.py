"""Pictures alone: what an image encoder is taught on before it meets any text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from diptych.data.source import Captioned
from diptych.data.transforms import ImageSettings, prepare, stack
from diptych.inputs import Batch


class PictureExamples:
    """Every picture of a source, and its mirror image: examples 2i and 2i + 1."""

    def __init__(self, source: Captioned, images: ImageSettings):
        self.source, self.images = source, images

    def __len__(self) -> int:
        return 2 * len(self.source)

    def length(self, index: int) -> int:
        return 1

    def load(self, index: int, seed: int, step: int) -> np.ndarray:
        picture = prepare(self.source.image(index // 2), self.images)
        return np.ascontiguousarray(picture[:, ::-1]) if index % 2 else picture

    def collate(self, loaded: list[np.ndarray], ids: Sequence[int], seed: int, step: int) -> Batch:
        return Batch(seed, step, torch.tensor(ids), image=stack(loaded, self.images))
