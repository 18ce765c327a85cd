"""Pictures alone: what an image encoder is taught on before it meets any text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from diptych.data.settings import ImageSettings
from diptych.data.shown import Shows, showing, shown_in
from diptych.data.source import Captioned
from diptych.inputs import Batch
from diptych.keyed import generator


class PictureExamples:
    """Every picture of a source, and its mirror image: examples 2i and 2i + 1. `images` shows pixels or a CNN's grid."""

    def __init__(self, source: Captioned, images: ImageSettings | Shows):
        self.source, self.shows = source, showing(images)

    def __len__(self) -> int:
        return 2 * len(self.source)

    def length(self, index: int) -> int:
        return 1

    def load(self, index: int, seed: int, step: int) -> np.ndarray:
        picture = self.shows.load(self.source, index // 2, partial(generator, seed, step, index, "augment"))
        return np.ascontiguousarray(picture[:, ::-1]) if index % 2 else picture

    def collate(self, loaded: list[np.ndarray], ids: Sequence[int], seed: int, step: int) -> Batch:
        return shown_in(Batch(seed, step, torch.tensor(ids)), self.shows.stack(loaded))
