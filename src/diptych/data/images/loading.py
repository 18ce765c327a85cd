"""How a picture is shown to a model: as pixels, or as what a frozen network or a detector saw in it (data/seen.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image as Pillow

from diptych.batch import Batch, Image, Regions
from diptych.config.data import ImageSettings
from diptych.data.images.transforms import stack, transform
from diptych.utils.cache import digest


@runtime_checkable
class ImageSource(Protocol):
    """Pictures by index: what sources of captions and of questions share."""

    name: str
    split: str

    def image(self, index: int) -> Pillow.Image: ...


@runtime_checkable
class ImageFiles(Protocol):
    """A source whose pictures lie as files: what was made of a picture is found again by its bytes, undecoded, and what
    a detector saw by its name.
    """

    def file(self, index: int) -> bytes:
        """The picture's file as it lies. Raises BadSample."""
        ...

    def stem(self, index: int) -> str:
        """The file's name without its ending."""
        ...


def file_of(source: ImageSource, index: int) -> bytes:
    """What a picture is known by: the bytes of its file, or of its pixels where it lies in none. Raises BadSample."""
    if isinstance(source, ImageFiles):
        return source.file(index)
    picture = source.image(index)
    return f"{picture.size}".encode() + picture.tobytes()


def stem_of(source: ImageSource, index: int) -> str:
    """The name of the picture's file; of what lies in none, its number."""
    return source.stem(index) if isinstance(source, ImageFiles) else str(index)


@runtime_checkable
class KeyedImages(Protocol):
    """A way to show pictures that knows them by name, and never reads their files."""

    def known_as(self, source: ImageSource, index: int) -> str: ...


def identity_of(shows: ImageLoader, source: ImageSource, index: int) -> int:
    """63 bits that tell a picture from others, the same in every process and run: of its file's bytes, so that a photo which
    is repeated under other names, or in a tar once for each caption, stays one (written anew or resized it is another); of
    its name where files are not read. Raises BadSample.
    """
    told = shows.known_as(source, index) if isinstance(shows, KeyedImages) else file_of(source, index)
    return int.from_bytes(digest(told)[:8], "big") >> 1


Random = Callable[[], np.random.Generator]


@runtime_checkable
class ImageLoader(Protocol):
    """What every kind of examples asks for its pictures, of any source."""

    def load(self, source: ImageSource, index: int, random: Random | None) -> Any:
        """One picture as it will be shown. `random`: asked where pictures are augmented. Raises BadSample."""
        ...

    def stack(self, loaded: Sequence[Any]) -> Image | Regions:
        """What a batch holds of those that were loaded."""
        ...


class PixelLoader:
    """Pixels, resized and normalised by `settings`, and augmented where they say so."""

    def __init__(self, settings: ImageSettings):
        self.settings = settings

    def load(self, source: ImageSource, index: int, random: Random | None) -> np.ndarray:
        drawn = random() if random is not None and self.settings.augment else None
        return transform(source.image(index), self.settings, drawn)

    def stack(self, loaded: Sequence[np.ndarray]) -> Image:
        return stack(loaded, self.settings)


def image_loader(images: ImageSettings | ImageLoader) -> ImageLoader:
    """Pixels where settings are given."""
    return PixelLoader(images) if isinstance(images, ImageSettings) else images


def shown_in(batch: Batch, shown: Image | Regions) -> Batch:
    """The batch with its pictures, in the field that is theirs."""
    return replace(batch, image=shown) if isinstance(shown, Image) else replace(batch, regions=shown)
