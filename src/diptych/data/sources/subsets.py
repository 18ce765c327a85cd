"""Subsets of a source of images and captions: without duplicate images, or some images with some of their captions."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image as Pillow

from diptych.data.images.loading import file_of, stem_of
from diptych.data.sources.base import Captioned
from diptych.data.sources.copies import first_copies_of


class Deduplicated:
    """A source without duplicates: images with the same bytes become one, at the first's place, with all captions."""

    def __init__(self, source: Captioned):
        self.source, self.name, self.split = source, source.name, source.split
        images: dict[int, list[int]] = {}
        for image, first in enumerate(first_copies_of(source, len(source))):
            images.setdefault(first, []).append(image)
        self.images = list(images.values())

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Pillow.Image:
        return self.source.image(self.images[index][0])

    def file(self, index: int) -> bytes:
        return file_of(self.source, self.images[index][0])

    def stem(self, index: int) -> str:
        return stem_of(self.source, self.images[index][0])

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(text for image in self.images[index] for text in self.source.captions(image))

    def where(self, index: int) -> str:
        return self.source.where(self.images[index][0])


class CaptionSubset:
    """The images of a source at the indices `images`, with the first `texts` captions of each (0: all)."""

    def __init__(self, source: Captioned, images: Sequence[int], texts: int = 0):
        self.source, self.name, self.split = source, source.name, source.split
        self.images, self.texts = images, texts or None

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Pillow.Image:
        return self.source.image(self.images[index])

    def file(self, index: int) -> bytes:
        return file_of(self.source, self.images[index])

    def stem(self, index: int) -> str:
        return stem_of(self.source, self.images[index])

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(self.source.captions(self.images[index])[: self.texts])

    def where(self, index: int) -> str:
        return self.source.where(self.images[index])
