"""The gallery of an evaluation: distinct images of a dataset with their captions, which a control shuffles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diptych.batch import Batch
from diptych.config.data import ImageSettings
from diptych.config.tasks import GalleryEvaluation
from diptych.data.examples import MAX_TEXT_CHARS, check_text
from diptych.data.images.loading import ImageLoader, image_loader, with_images
from diptych.data.loader import SkipCounter, Skipped
from diptych.data.sources.ablations import ShuffledCaptions
from diptych.data.sources.base import BadSample, Captioned, DataError
from diptych.data.sources.captions import open_captions
from diptych.data.sources.division import say_division
from diptych.data.sources.subsets import CaptionSubset, Deduplicated


def open_gallery(config: GalleryEvaluation, min_side: int) -> Captioned:
    """The images to score, without duplicates, each with all its captions. Prints how the data were split.

    `min_side`: see `open_captions`. Raises DataError.
    """
    source = open_captions(config.data, config.split, config.layout, min_side=min_side)
    say_division(source)
    source = Deduplicated(source)
    source = CaptionSubset(source, range(len(source))[: config.gallery or None], config.captions)
    return ShuffledCaptions(source, config.seed) if config.shuffle_captions else source


@dataclass(frozen=True)
class Gallery:
    """Images, texts, and for each text the index of its image in `source`.

    `positions`: the place of each image among those that were opened, before any was left out; ascending.
    """

    source: Captioned
    texts: list[str]
    image_of_text: list[int]
    positions: list[int]

    def select(self, images: Sequence[int]) -> Gallery:
        """The gallery of these images only, in this order, with their texts."""
        new_index = {image: i for i, image in enumerate(images)}
        texts = self.text_indices(images)
        return Gallery(
            CaptionSubset(self.source, images),
            [self.texts[i] for i in texts],
            [new_index[self.image_of_text[i]] for i in texts],
            [self.positions[image] for image in images],
        )

    def text_indices(self, images: Sequence[int]) -> list[int]:
        """The indices of the texts that belong to one of these images."""
        selected = set(images)
        return [i for i, image in enumerate(self.image_of_text) if image in selected]


def readable_gallery(source: Captioned, counter: SkipCounter) -> Gallery:
    """The gallery of a source's usable captions, and of the images that have one. Raises DataError if there is none."""
    texts, image_of_text = readable_texts(source, counter)
    return Gallery(source, texts, image_of_text, list(range(len(source)))).select(sorted(set(image_of_text)))


def readable_texts(source: Captioned, counter: SkipCounter) -> tuple[list[str], list[int]]:
    """The usable captions, and for each the index of its image. Raises DataError if there is none."""
    texts, image_of_text = [], []
    for image in range(len(source)):
        for text in source.captions(image):
            try:
                check_text(text, source.where(image))
            except BadSample as bad:
                # negative ids for captions: the image of the same index may be skipped too, and is counted separately
                counter.add(0, [Skipped(-1 - image, bad.where, bad.why)])
                continue
            counter.add(1, [])
            texts.append(text[:MAX_TEXT_CHARS])
            image_of_text.append(image)
    if not texts:
        raise DataError(f"{source.name} ({source.split}): no caption can be read")
    return texts, image_of_text


class GalleryImages:
    """Examples (see `data.examples.Examples`) of the images only, one each."""

    def __init__(self, source: Captioned, images: ImageSettings | ImageLoader):
        self.source, self.images = source, image_loader(images)

    def __len__(self) -> int:
        return len(self.source)

    def length(self, index: int) -> int:
        return 1

    def load(self, index: int, seed: int, step: int) -> Any:
        return self.images.load(self.source, index, None)

    def collate(self, loaded: list[Any], ids: Sequence[int], seed: int, step: int) -> Batch:
        return with_images(Batch(seed, step, torch.tensor(ids)), self.images.stack(loaded))
