"""What an evaluation makes of a source of captions: a part of it, dealt anew for the control."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image as Pillow
from rich.progress import track
from torch import Tensor

from diptych.batch import Batch
from diptych.config.data import ImageSettings
from diptych.config.run import Evaluation
from diptych.data.examples import LONGEST_TEXT, check_text
from diptych.data.images.loading import ImageLoader, file_of, image_loader, shown_in, stem_of
from diptych.data.loader import SkipCounter, Skipped, evaluation_loader
from diptych.data.sources.ablations import ShuffledCaptions
from diptych.data.sources.base import BadSample, Captioned, DataError
from diptych.data.sources.captions import open_captions
from diptych.data.sources.copies import pictures_of
from diptych.runs.scoring.base import EvaluatedModel
from diptych.runs.training_data import say_division


def open_gallery(asked: Evaluation, least: int) -> Captioned:
    """The pictures that are to be scored, each once, with all its captions. Says how the data was divided. Raises DataError."""
    source = open_captions(asked.data, asked.split, least=least)
    say_division(source)
    source = Distinct(source)
    source = Part(source, range(len(source))[: asked.gallery or None], asked.captions)
    return ShuffledCaptions(source, asked.seed) if asked.shuffle_captions else source


class Distinct:
    """A source's pictures, each once, where the first image with its bytes stands, with the captions of all such images."""

    def __init__(self, source: Captioned):
        self.source, self.name, self.split = source, source.name, source.split
        images: dict[int, list[int]] = {}
        for image, first in enumerate(pictures_of(source, len(source))):
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


class Part:
    """Some `images` of a source, by index, with the first `texts` captions of each (0: all)."""

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


@dataclass(frozen=True)
class Gallery:
    """Pictures, texts, and the picture that each text is of."""

    source: Captioned
    texts: list[str]
    owners: list[int]

    def of(self, images: Sequence[int]) -> Gallery:
        """These pictures alone, in this order, with their texts."""
        place = {image: i for i, image in enumerate(images)}
        kept = self.texts_of(images)
        return Gallery(Part(self.source, images), [self.texts[i] for i in kept], [place[self.owners[i]] for i in kept])

    def texts_of(self, images: Sequence[int]) -> list[int]:
        """Which texts are of one of these pictures."""
        wanted = set(images)
        return [i for i, owner in enumerate(self.owners) if owner in wanted]

    @property
    def owner(self) -> Int[Tensor, " texts"]:
        return torch.tensor(self.owners, dtype=torch.long)


def readable(source: Captioned, tally: SkipCounter) -> Gallery:
    """The texts of a source that can be read, and the pictures that have one. Raises DataError where there is none."""
    texts, owners = readable_texts(source, tally)
    return Gallery(source, texts, owners).of(sorted(set(owners)))


def readable_texts(source: Captioned, tally: SkipCounter) -> tuple[list[str], list[int]]:
    """All captions that can be read, and the picture each belongs to."""
    texts, owners = [], []
    for image in range(len(source)):
        for text in source.captions(image):
            try:
                check_text(text, source.where(image))
            except BadSample as bad:
                tally.add(0, [Skipped(-1 - image, bad.where, bad.why)])  # below zero: the picture may be bad as well
                continue
            tally.add(1, [])
            texts.append(text[:LONGEST_TEXT])
            owners.append(image)
    if not texts:
        raise DataError(f"{source.name} ({source.split}): no caption can be read")
    return texts, owners


class Pictures:
    """Each picture of a source once, as examples."""

    def __init__(self, source: Captioned, images: ImageSettings | ImageLoader):
        self.source, self.shows = source, image_loader(images)

    def __len__(self) -> int:
        return len(self.source)

    def length(self, index: int) -> int:
        return 1

    def load(self, index: int, seed: int, step: int) -> Any:
        return self.shows.load(self.source, index, None)

    def collate(self, loaded: list[Any], ids: Sequence[int], seed: int, step: int) -> Batch:
        return shown_in(Batch(seed, step, torch.tensor(ids)), self.shows.stack(loaded))


def read_pictures(
    subject: EvaluatedModel, gallery: Gallery, batch: int, tally: SkipCounter, what: str
) -> Iterator[Batch]:
    """The pictures of a gallery, `batch` at a time, on the run's device, `ids` their places; those that cannot be used are
    left out.
    """
    food = Pictures(gallery.source, subject.shows)
    loading = evaluation_loader(food, batch, workers=subject.asked.workers)
    for loaded in track(loading, description=what, total=-(-len(food) // batch)):
        tally.add(len(loaded.batch), loaded.skipped)
        yield loaded.batch.to(subject.device)
