"""Image loaders: how an image enters a batch, as pixels or as features of a frozen network or a detector.

The loaders of features are in data/regions/frozen_features.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image as Pillow

from diptych.batch import Batch, Image, Regions
from diptych.config.data import ImageSettings
from diptych.data.images.transforms import stack, transform
from diptych.utils.feature_cache import digest


@runtime_checkable
class ImageSource(Protocol):
    """Images by index: the common part of caption sources and question sources."""

    name: str
    split: str

    def image(self, index: int) -> Pillow.Image: ...


@runtime_checkable
class ImageFiles(Protocol):
    """A source whose images are files.

    Cached features are looked up by a file's bytes, without decoding it, and detector features by its name.
    """

    def file(self, index: int) -> bytes:
        """Bytes of the image file. Raises BadSample."""
        ...

    def stem(self, index: int) -> str:
        """File name without its suffix."""
        ...


def file_of(source: ImageSource, index: int) -> bytes:
    """Bytes that identify an image: its file, or size and pixels if the source has no files. Raises BadSample."""
    return source.file(index) if isinstance(source, ImageFiles) else size_and_pixels(source.image(index))


def size_and_pixels(image: Pillow.Image) -> bytes:
    """Bytes that identify an image without a file."""
    return f"{image.size}".encode() + image.tobytes()


def stem_of(source: ImageSource, index: int) -> str:
    """File name of an image without its suffix; its index if the source has no files."""
    return source.stem(index) if isinstance(source, ImageFiles) else str(index)


@runtime_checkable
class KeyedImages(Protocol):
    """An image loader that identifies images by name and never reads their files."""

    def image_key(self, source: ImageSource, index: int) -> str: ...


def identity_of(loader: ImageLoader, source: ImageSource, index: int) -> int:
    """63-bit identity of an image, the same in every process and run.

    A hash of the file's bytes, so that copies of a photo under other names, or once per caption in a tar, have one
    identity (a re-encoded or resized copy has another); a hash of the name if the loader does not read files.
    Raises BadSample.
    """
    key = loader.image_key(source, index) if isinstance(loader, KeyedImages) else file_of(source, index)
    return int.from_bytes(digest(key)[:8], "big") >> 1


Random = Callable[[], np.random.Generator]


@runtime_checkable
class ImageLoader(Protocol):
    """Loads one image and stacks several into a batch. Every kind of examples uses one, with any source."""

    def load(self, source: ImageSource, index: int, random: Random | None) -> Any:
        """One image, ready to be stacked. `random` returns a generator, called only to augment. Raises BadSample."""
        ...

    def stack(self, loaded: Sequence[Any]) -> Image | Regions:
        """The batched images or regions of several that were loaded."""
        ...


class PixelLoader:
    """Pixels, resized and normalised by `settings`, and augmented as `settings` say."""

    def __init__(self, settings: ImageSettings):
        self.settings = settings

    def load(self, source: ImageSource, index: int, random: Random | None) -> np.ndarray:
        generator = random() if random is not None and self.settings.augmented else None
        return transform(source.image(index), self.settings, generator)

    def stack(self, loaded: Sequence[np.ndarray]) -> Image:
        return stack(loaded, self.settings)


def image_loader(images: ImageSettings | ImageLoader) -> ImageLoader:
    """`images` itself if it is a loader, or a pixel loader with these settings."""
    return PixelLoader(images) if isinstance(images, ImageSettings) else images


def with_images(batch: Batch, images: Image | Regions) -> Batch:
    """The batch with pixels in `Batch.image` or regions in `Batch.regions`."""
    return replace(batch, image=images) if isinstance(images, Image) else replace(batch, regions=images)
