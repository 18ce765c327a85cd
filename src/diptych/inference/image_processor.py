"""Image processor: from images as people pass them to the image input of a trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from diptych.batch import Image, Regions
from diptych.config.data import ImageSettings
from diptych.data.images.loading import image_loader
from diptych.data.regions.frozen_features import RegionLoader
from diptych.data.sources.base import BadSample, Skipped
from diptych.data.sources.photos import Photos, open_photos
from diptych.inference.loaded_model import LoadedModel
from diptych.models.configs import model_name
from diptych.protocols import UnsupportedOperation

OnError = Callable[[Skipped], object] | None
"""What is called with each image that cannot be read, which is then left out; None: BadSample is raised."""


class ImageProcessor:
    """Reads, resizes and normalises images; for a model on frozen features it runs their extractor, too.

    `settings`: size and normalization. Calling it gives the model's image input of all images in one batch: pixels,
    the features of a frozen network, or the regions of a detector.
    """

    def __init__(self, loaded: LoadedModel):
        self.settings: ImageSettings = loaded.image_settings
        self._loader = image_loader(loaded.image_input)
        self._model, self._regions = model_name(loaded.saved.model), loaded.saved.embedders.image

    def __call__(self, images: object) -> Image | Regions:
        """The image input of the model, on the CPU. Raises DataError, BadSample, UnsupportedOperation."""
        photos = self.open(images)
        return self._loader.stack([self._loader.load(photos, i, None) for i in range(len(photos))])

    def open(self, images: object) -> Photos:
        """The images, not read yet; an empty list gives none.

        Raises:
            DataError: see `data.sources.photos.open_photos`.
            UnsupportedOperation: the model needs files, whose regions it looks up by name, and an image is none.
        """
        if isinstance(images, list | tuple) and not images:
            return Photos([])
        photos = open_photos(images, min_side=self.settings.shorter_side)  # type: ignore[arg-type]  # checked there
        if isinstance(self._loader, RegionLoader):
            self._check_files(photos)
        return photos

    def _check_files(self, photos: Photos) -> None:
        unnamed = next((photos.where(i) for i in range(len(photos)) if not photos.path(i)), None)
        if unnamed is not None:
            raise UnsupportedOperation(
                f"{unnamed}: this {self._model} takes no pixels, only the regions of a detector, which it looks up in "
                f"{self._regions} by the name of the image file: pass paths of images whose regions are in there"
            )

    def batches(
        self, photos: Photos, batch_size: int, on_error: OnError = None, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Image | Regions]]:
        """Images in batches, each with the places of its images in `indices`.

        Args:
            on_error: called once with each image that cannot be read, which its batch then lacks; a batch without any
                image is left out. None: BadSample is raised.
            indices: of `photos`, any of which may recur; None: all.

        Raises BadSample, and ValueError for a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1: got {batch_size}")
        indices, skipped = range(len(photos)) if indices is None else indices, set[int]()
        for start in range(0, len(indices), batch_size):
            loaded: dict[int, Any] = {}
            for i in dict.fromkeys(indices[start : start + batch_size]):
                try:
                    loaded[i] = self._loader.load(photos, i, None)
                except BadSample as bad:
                    if on_error is None:
                        raise _with_advice(bad) if len(photos) > 1 else bad from None
                    if i not in skipped:
                        on_error(Skipped(i, bad.where, bad.why))
                    skipped.add(i)
            places = [start + k for k, i in enumerate(indices[start : start + batch_size]) if i in loaded]
            if places:
                yield places, self._loader.stack([loaded[indices[place]] for place in places])


def _with_advice(bad: BadSample) -> BadSample:
    return BadSample(bad.where, f"{bad.why}; to go on without it, pass on_error, as on_error=print")
