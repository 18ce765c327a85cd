"""What frozen networks see in pictures, in the place of their pixels: looked at once, then found by the picture's file."""

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
from diptych.utils.cache import Arrays, MemoryCache, digest

Look = Callable[[Tensor], Arrays]
"""From the pixels of one picture (3, h, w), in [-1, 1], to what is seen in it: models.cnn.FrozenCNN.look, and others."""
Tell = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From a map's means in some boxes (n, f) to features of them, and how likely each class is there."""


class FeatureKeys:
    """What each picture that is prepared by `images` is known by, of what a frozen network sees in it (`network`: its digest)."""

    def __init__(self, network: bytes, images: ImageSettings):
        # stores know pictures by this: one mean and std, since all channels have the same
        told = (images.shorter_side, images.longer_ratio, images.patch_size, HALF[0], HALF[0], images.square)
        if (images.square_width, images.crop, images.resample) != (
            0,
            0,
            "bicubic",
        ):  # the names of all others stay as they were
            told += (images.square_width, images.crop, images.resample)
        self._name = digest(network, repr(told))

    def of(self, source: ImageSource, index: int) -> bytes:
        """A digest of all that what is seen depends on. Raises BadSample."""
        return digest(self._name, file_of(source, index))


class ExtractedFeatures:
    """What `look` sees in pictures that are prepared by `images` (never augmented, and in [-1, 1], however the run's own
    model is shown them). `name`: a digest of the network.

    Each picture is looked at once, where `remembered` has room or a store, which later runs and other processes share. It
    is known by its file's bytes, so that it need not even be decoded again; by its pixels where it lies in no file.
    """

    def __init__(self, look: Look, name: bytes, images: ImageSettings, remembered: MemoryCache):
        self.images = replace(images, augment=False, mean=HALF, std=HALF)
        self.look, self.remembered, self.names = look, remembered, FeatureKeys(name, images)

    def of(self, source: ImageSource, index: int) -> Arrays:
        """Raises BadSample."""
        return self.remembered.get_or_compute(self.names.of(source, index), lambda: self._look(source, index))

    def _look(self, source: ImageSource, index: int) -> Arrays:
        return self.look(normalise(transform(source.image(index), self.images), self.images))


class GridLoader:
    """A CNN's last map in the place of each picture (see shown.Shows): what `layers.grid.GridEmbedding` makes tokens of.

    In a batch it is an image of as many channels as the map has features, and as many pixels as it has cells.
    """

    def __init__(self, seen: ExtractedFeatures):
        self.seen = seen

    def load(self, source: ImageSource, index: int, random: Random | None = None) -> np.ndarray:
        return self.seen.of(source, index)["grid"].numpy()

    def stack(self, loaded: Sequence[np.ndarray]) -> Image:
        sizes = torch.tensor([grid.shape[:2] for grid in loaded])
        rows, columns = sizes.amax(0).tolist()
        canvas = torch.zeros(len(loaded), rows, columns, loaded[0].shape[2])
        for cells, grid in zip(canvas, loaded, strict=True):
            cells[: grid.shape[0], : grid.shape[1]] = torch.from_numpy(grid)
        return Image(canvas.permute(0, 3, 1, 2), sizes)


class BoxLoader:
    """What a CNN sees in the same `boxes` of every picture (see shown.Shows), in the place of what a detector finds:
    what `tell` makes of its map's mean in each box: features, and the classes that masked regions can be asked for.

    `boxes` are as data.boxes makes them. `whole`: with the whole image in front (ViLBERT).
    """

    def __init__(
        self, seen: ExtractedFeatures, boxes: np.ndarray, tell: Tell, remembered: MemoryCache, whole: bool = False
    ):
        self.seen, self.boxes, self.tell, self.remembered, self.whole = seen, boxes, tell, remembered, whole
        self._name = digest("boxes", boxes.tobytes())

    def load(self, source: ImageSource, index: int, random: Random | None = None) -> DetectedImage:
        name = digest(self._name, self.seen.names.of(source, index))
        found = self.remembered.get_or_compute(name, lambda: self._pool(self.seen.of(source, index)["grid"]))
        return DetectedImage(found["features"].float().numpy(), self.boxes, found["classes"].float().numpy())

    def stack(self, loaded: Sequence[DetectedImage]) -> Regions:
        regions = stack_regions(loaded)
        return regions.with_whole_image() if self.whole else regions

    def _pool(self, grid: Tensor) -> Arrays:
        with torch.no_grad():
            features, classes = self.tell(pooled(grid.float(), torch.from_numpy(self.boxes)))
            return {"features": features.half(), "classes": classes.half()}


def pooled(grid: Tensor, boxes: Tensor) -> Tensor:
    """The mean of a map (rows, columns, f) within each box (n × 5, see inputs.Regions): every cell counts by the share of
    it that the box covers.
    """
    rows, columns, _ = grid.shape

    def covered(begin: Tensor, end: Tensor, cells: int) -> Tensor:
        edges = torch.arange(cells + 1) / cells
        return (torch.minimum(end[:, None], edges[1:]) - torch.maximum(begin[:, None], edges[:-1])).clamp(min=0)

    tall, wide = covered(boxes[:, 1], boxes[:, 3], rows), covered(boxes[:, 0], boxes[:, 2], columns)
    shares = tall[:, :, None] * wide[:, None, :]
    return torch.einsum("nrc,rcf->nf", shares / shares.sum((1, 2), keepdim=True), grid)


class RegionLoader:
    """What a detector saw in each picture (see shown.Shows), as it is published (data.regions): found by the name of the
    picture's file, or by the number that ends it (COCO's and Visual Genome's ids). `whole`: with the whole image in front.
    """

    def __init__(self, regions: DetectedRegions, whole: bool = False):
        self.regions, self.whole = regions, whole

    def known_as(self, source: ImageSource, index: int) -> str:
        return stem_of(source, index)

    def load(self, source: ImageSource, index: int, random: Random | None = None) -> DetectedImage:
        stem = stem_of(source, index)
        number = re.search(r"\d+$", stem)
        for name in (stem, number and (number[0].lstrip("0") or "0")):
            if name and name in self.regions:
                return self.regions.load(name)
        raise BadSample(f"{source.name} ({source.split}), {stem}", "no regions of this picture are among those given")

    def stack(self, loaded: Sequence[DetectedImage]) -> Regions:
        regions = stack_regions(loaded)
        return regions.with_whole_image() if self.whole else regions
