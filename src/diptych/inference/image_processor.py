"""Image processor: from images as people pass them to the image input of a trained model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diptych.batch import Image, Regions
from diptych.config.data import ImageSettings
from diptych.data.images.loading import image_loader
from diptych.data.regions.frozen_features import RegionLoader
from diptych.data.sources.photos import Photos, open_photos
from diptych.inference.loaded_model import LoadedModel
from diptych.models.configs import model_name
from diptych.protocols import UnsupportedOperation


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
        return self.stack(photos, range(len(photos)))

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

    def stack(self, photos: Photos, indices: Sequence[int]) -> Image | Regions:
        """The images of these indices, which may recur, as one batch. Raises BadSample, which names the image."""
        loaded = {i: self._loader.load(photos, i, None) for i in dict.fromkeys(indices)}
        return self._loader.stack([loaded[i] for i in indices])

    def batches(self, photos: Photos, batch_size: int) -> Iterator[tuple[range, Image | Regions]]:
        """All images in batches, with their indices. Raises BadSample, and ValueError for a batch size below 1."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1: got {batch_size}")
        for start in range(0, len(photos), batch_size):
            indices = range(start, min(start + batch_size, len(photos)))
            yield indices, self.stack(photos, indices)
