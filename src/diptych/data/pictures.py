"""Pictures alone: what an image encoder is taught on before it meets any text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from diptych.data.seen import Names
from diptych.data.settings import ImageSettings
from diptych.data.shown import Shows, showing, shown_in
from diptych.data.source import Captioned
from diptych.inputs import Batch, Known
from diptych.keyed import generator


class PictureExamples:
    """Every picture of a source, and its mirror image: examples 2i and 2i + 1. `images` shows pixels or a CNN's grid.
    `names`: what pictures are known by, where what a frozen network sees in them is kept; they may not be augmented.
    """

    def __init__(self, source: Captioned, images: ImageSettings | Shows, names: Names | None = None):
        self.source, self.shows, self.names = source, showing(images), names

    def __len__(self) -> int:
        return 2 * len(self.source)

    def length(self, index: int) -> int:
        return 1

    def load(self, index: int, seed: int, step: int) -> tuple[np.ndarray, bytes]:
        picture = self.shows.load(self.source, index // 2, partial(generator, seed, step, index, "augment"))
        name = b"" if self.names is None else self.names.of(self.source, index // 2)
        return np.ascontiguousarray(picture[:, ::-1]) if index % 2 else picture, name

    def collate(self, loaded: list[tuple[np.ndarray, bytes]], ids: Sequence[int], seed: int, step: int) -> Batch:
        pictures, names = zip(*loaded, strict=True)
        known = None if self.names is None else Known.of(names, [index % 2 == 1 for index in ids])
        return shown_in(Batch(seed, step, torch.tensor(ids), known=known), self.shows.stack(pictures))
