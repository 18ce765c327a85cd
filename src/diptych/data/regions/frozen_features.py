"""Image loaders of frozen features: a CNN's feature map, the map pooled in fixed boxes, or a detector's regions.

Extracted features are cached under a hash of the image file and of all that they depend on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from diptych.batch import Image, Regions
from diptych.config.data import HALF, ImageSettings
from diptych.data.images.loading import ImageSource, Random, file_of, stem_of
from diptych.data.images.transforms import normalise, transform
from diptych.data.regions.arrays import DetectedImage, stack_regions
from diptych.data.regions.files import DetectedRegions
from diptych.data.sources.base import BadSample
from diptych.utils.feature_cache import Arrays, MemoryCache, digest

Extract = Callable[[Tensor], Arrays]
"""Function from the pixels ``(3, h, w)`` of one image, in [-1, 1], to named features (encoders.efficientnet)."""
Classify = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Function from a feature map's means in n boxes ``(n, f)`` to region features and class probabilities."""


class FeatureKeys:
    """Cache keys of a network's features (`network`: its digest) of images preprocessed by `images`."""

    def __init__(self, network: bytes, images: ImageSettings):
        # part of the keys of existing caches: one mean and std, because all channels have the same
        preprocessing = (images.shorter_side, images.longer_ratio, images.patch_size, HALF[0], HALF[0], images.square)
        later = (images.square_width, images.crop, images.resample)
        if later != (0, 0, "bicubic"):  # fields added later: their defaults leave older keys as they were
            preprocessing += later
        self._name = digest(network, repr(preprocessing))

    def of(self, source: ImageSource, index: int) -> bytes:
        """Key of one image: a digest of everything its features depend on. Raises BadSample."""
        return digest(self._name, file_of(source, index))


class ExtractedFeatures:
    """Features that `extract` computes from images preprocessed by `images`, through a cache.

    Images are never augmented, and lie in [-1, 1] whatever the run's own mean and std. Features are computed once where
    `cache` has room, or a disk cache, which later runs and other processes share. Keys are hashes of the file's bytes,
    so that a cached image is not even decoded again, or of the pixels if an image has no file.

    Args:
        extract: the frozen network.
        name: its digest.
        images: preprocessing.
        cache: memory cache, with or without a disk cache.
    """

    def __init__(self, extract: Extract, name: bytes, images: ImageSettings, cache: MemoryCache):
        self.images = replace(images, augment=False, mean=HALF, std=HALF)
        self.extract, self.cache, self.names = extract, cache, FeatureKeys(name, images)

    def of(self, source: ImageSource, index: int) -> Arrays:
        """Features of one image. Raises BadSample."""
        return self.cache.get_or_compute(self.names.of(source, index), lambda: self._extract(source, index))

    def _extract(self, source: ImageSource, index: int) -> Arrays:
        return self.extract(normalise(transform(source.image(index), self.images), self.images))


class GridLoader:
    """Loader of a CNN's last feature map instead of pixels (see images.loading.ImageLoader), for a grid embedding.

    In a batch it is an image with one channel per feature and one pixel per cell of the map.
    """

    def __init__(self, features: ExtractedFeatures):
        self.features = features

    def load(self, source: ImageSource, index: int, random: Random | None = None) -> np.ndarray:
        return self.features.of(source, index)["grid"].numpy()

    def stack(self, loaded: Sequence[np.ndarray]) -> Image:
        sizes = torch.tensor([grid.shape[:2] for grid in loaded])
        rows, columns = sizes.amax(0).tolist()
        canvas = torch.zeros(len(loaded), rows, columns, loaded[0].shape[2])
        for cells, grid in zip(canvas, loaded, strict=True):
            cells[: grid.shape[0], : grid.shape[1]] = torch.from_numpy(grid)
        return Image(canvas.permute(0, 3, 1, 2), sizes)


class BoxLoader:
    """Loader of a CNN's features in fixed boxes, instead of a detector's regions (see images.loading.ImageLoader).

    Args:
        features: the CNN's feature maps.
        boxes: the same for every image, ``(n, 5)`` (see regions.arrays.fixed_boxes).
        classify: from the map's mean in each box to region features and class probabilities, the targets of masked
            region modelling.
        cache: where they are kept.
        whole: whether a region of the whole image is prepended (ViLBERT).
    """

    def __init__(
        self,
        features: ExtractedFeatures,
        boxes: np.ndarray,
        classify: Classify,
        cache: MemoryCache,
        whole: bool = False,
    ):
        self.features, self.boxes, self.classify, self.cache, self.whole = features, boxes, classify, cache, whole
        self._grid: tuple[bytes, Tensor] | None = None  # the last feature map and its key, for several sets of boxes

    def load(self, source: ImageSource, index: int, random: Random | None = None) -> DetectedImage:
        return self.load_boxes(source, index, self.boxes)

    def load_boxes(self, source: ImageSource, index: int, boxes: np.ndarray) -> DetectedImage:
        """The CNN's features in other boxes ``(n, 5)`` of one image. Raises BadSample."""
        key = self.features.names.of(source, index)
        name = digest(digest("boxes", boxes.tobytes()), key)
        arrays = self.cache.get_or_compute(name, lambda: self._pool(self._map(source, index, key), boxes))
        return DetectedImage(arrays["features"].float().numpy(), boxes, arrays["classes"].float().numpy())

    def _map(self, source: ImageSource, index: int, key: bytes) -> Tensor:
        if self._grid is None or self._grid[0] != key:
            self._grid = key, self.features.of(source, index)["grid"]
        return self._grid[1]

    def stack(self, loaded: Sequence[DetectedImage]) -> Regions:
        regions = stack_regions(loaded)
        return regions.with_whole_image() if self.whole else regions

    def _pool(self, grid: Tensor, boxes: np.ndarray) -> Arrays:
        with torch.no_grad():
            features, classes = self.classify(pooled(grid.float(), torch.from_numpy(boxes)))
            return {"features": features.half(), "classes": classes.half()}


def pooled(grid: Tensor, boxes: Tensor) -> Tensor:
    """Mean ``(n, f)`` of a feature map ``(rows, columns, f)`` within boxes ``(n, 5)`` (see batch.Regions).

    Each cell is weighted by the share of it that the box covers.
    """
    rows, columns, _ = grid.shape

    def coverage(begin: Tensor, end: Tensor, cells: int) -> Tensor:
        edges = torch.arange(cells + 1) / cells
        return (torch.minimum(end[:, None], edges[1:]) - torch.maximum(begin[:, None], edges[:-1])).clamp(min=0)

    tall, wide = coverage(boxes[:, 1], boxes[:, 3], rows), coverage(boxes[:, 0], boxes[:, 2], columns)
    shares = tall[:, :, None] * wide[:, None, :]
    return torch.einsum("nrc,rcf->nf", shares / shares.sum((1, 2), keepdim=True), grid)


class RegionLoader:
    """Loader of a detector's published regions (regions/files.py) instead of pixels (see images.loading.ImageLoader).

    Regions are looked up by the stem of the image file, or by the number at its end (COCO's and Visual Genome's ids).
    `whole`: whether a region of the whole image is prepended.
    """

    def __init__(self, regions: DetectedRegions, whole: bool = False):
        self.regions, self.whole = regions, whole

    def image_key(self, source: ImageSource, index: int) -> str:
        return stem_of(source, index)

    def load(self, source: ImageSource, index: int, random: Random | None = None) -> DetectedImage:
        stem = stem_of(source, index)
        number = re.search(r"\d+$", stem)
        for name in (stem, number and (number[0].lstrip("0") or "0")):
            if name and name in self.regions:
                return self.regions.load(name)
        raise BadSample(
            f"{source.name} ({source.split}), {stem}",
            "no regions of this image; check that the region files cover this data set",
        )

    def stack(self, loaded: Sequence[DetectedImage]) -> Regions:
        regions = stack_regions(loaded)
        return regions.with_whole_image() if self.whole else regions
