"""What an evaluation makes of a source of captions: a part of it, dealt anew for the control."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image as Pillow

from diptych.data.blind import DealtCaptions
from diptych.data.files import open_captions
from diptych.data.settings import ImageSettings
from diptych.data.source import Captioned
from diptych.data.transforms import prepare, stack
from diptych.inputs import Batch
from diptych.recipes.run import Evaluation


def open_gallery(asked: Evaluation, least: int) -> Captioned:
    """The pictures and captions that are to be scored. Raises DataError."""
    source = open_captions(asked.data, asked.split, least=least)
    source = Part(source, range(len(source))[: asked.gallery or None], asked.captions)
    return DealtCaptions(source, asked.seed) if asked.control else source


class Part:
    """Some `images` of a source, by index, with the first `texts` captions of each (0: all)."""

    def __init__(self, source: Captioned, images: Sequence[int], texts: int = 0):
        self.source, self.name, self.split = source, source.name, source.split
        self.images, self.texts = images, texts or None

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Pillow.Image:
        return self.source.image(self.images[index])

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(self.source.captions(self.images[index])[: self.texts])

    def where(self, index: int) -> str:
        return self.source.where(self.images[index])


class Pictures:
    """Each picture of a source once, as examples."""

    def __init__(self, source: Captioned, images: ImageSettings):
        self.source, self.images = source, images

    def __len__(self) -> int:
        return len(self.source)

    def length(self, index: int) -> int:
        return 1

    def load(self, index: int, seed: int, step: int) -> np.ndarray:
        return prepare(self.source.image(index), self.images)

    def collate(self, loaded: list[np.ndarray], ids: Sequence[int], seed: int, step: int) -> Batch:
        return Batch(seed, step, torch.tensor(ids), image=stack(loaded, self.images))
