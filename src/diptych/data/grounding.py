"""Training examples of grounding: a phrase, the regions of its image, and how much each overlaps with the true box."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from diptych.batch import Batch, Regions
from diptych.config.data import ImageSettings
from diptych.data.examples import MAX_TEXT_CHARS, check_text
from diptych.data.images.loading import ImageLoader, PixelLoader, image_loader, with_images
from diptych.data.regions.arrays import DetectedImage, fixed_boxes, shares, stack_regions
from diptych.data.regions.frozen_features import BoxLoader, RegionLoader
from diptych.data.sources.base import BadSample, Box, DataError, Grounded
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.metrics.boxes import THRESHOLD, ious

Proposals = Literal["model", "joined", "true"]
OVERSHOOT = 1.0  # pixels that a box may extend beyond its image: data sets round them


@dataclass(frozen=True)
class LoadedExpression:
    """A loaded image with its regions, a phrase, and the true box as shares of the image's sides.

    `boxes`: the regions ``(n, 5)`` of an image of pixels.
    """

    image: Any
    boxes: np.ndarray
    phrase: str
    truth: np.ndarray


class GroundedExamples:
    """One example per referring expression.

    Regions are those that the model reads, or, for a model of pixels, fixed boxes (regions.arrays.fixed_boxes); with
    `proposals` "joined" the true boxes of all objects of the image follow them (ViLBERT, for training), with "true"
    they are the only ones. Images are never augmented: boxes would move.

    Args:
        images: settings of pixels, or a loader of regions.
        true_regions: a detector's features of the true boxes, needed where `images` reads a detector's files.

    Labels: ``regions`` float ``(b, n)``, the IoU of each region with the true box if it is at least 0.5, else 0; for
    models of pixels ``boxes`` float ``(b, n, 5)``, the regions, zero at padding.

    Raises:
        DataError: true boxes are asked for, and a detector's files have no features of them.
    """

    def __init__(
        self,
        source: Grounded,
        tokenizer: Tokenizer,
        images: ImageSettings | ImageLoader,
        proposals: Proposals = "model",
        true_regions: RegionLoader | None = None,
    ):
        still = replace(images, augment=False) if isinstance(images, ImageSettings) else images
        self.source, self.tokenizer, self.loader = source, tokenizer, image_loader(still)
        self.proposals, self.true_regions = proposals, true_regions
        if proposals != "model" and isinstance(self.loader, RegionLoader) and true_regions is None:
            raise DataError(
                f"proposals {proposals!r}: the model reads a detector's regions, and features of the true boxes are in "
                "other files of that detector: give true_regions, their path"
            )

    def __len__(self) -> int:
        return len(self.source)

    def length(self, index: int) -> int:
        return 1  # as of questions: batches are not grouped by length

    def load(self, index: int, seed: int, step: int) -> LoadedExpression:
        expression, where = self.source.expression(index), self.source.where(index)
        check_text(expression.phrase, where)
        size = self.source.size(expression.image)
        (truth,) = box_shares([expression.box], size, where)
        phrase = expression.phrase[:MAX_TEXT_CHARS]
        if isinstance(self.loader, PixelLoader):
            image = self.loader.load(self.source, expression.image, None)
            boxes = [] if self.proposals == "true" else [fixed_boxes()]
            boxes += [] if self.proposals == "model" else [true_boxes(self.source, expression.image)]
            return LoadedExpression(image, np.concatenate(boxes), phrase, truth)
        regions = self._regions(expression.image)
        return LoadedExpression(regions, regions.boxes, phrase, truth)

    def _regions(self, image: int) -> DetectedImage:
        """The regions of an image with their features."""
        if self.proposals == "model":
            return self.loader.load(self.source, image, None)
        true = self._true_regions(image)
        if self.proposals == "true":
            return true
        own = self.loader.load(self.source, image, None)
        return joined(with_whole_image(own) if self._has_whole_image else own, true)

    @property
    def _has_whole_image(self) -> bool:
        return isinstance(self.loader, BoxLoader | RegionLoader) and self.loader.whole

    def _true_regions(self, image: int) -> DetectedImage:
        """The true boxes of an image with their features: a detector's, or the CNN's."""
        if self.true_regions is not None:
            return self.true_regions.load(self.source, image)
        if not isinstance(self.loader, BoxLoader):
            raise DataError(f"proposals {self.proposals!r}: no features of the true boxes; give true_regions")
        return self.loader.load_boxes(self.source, image, true_boxes(self.source, image))

    def collate(self, loaded: list[LoadedExpression], ids: Sequence[int], seed: int, step: int) -> Batch:
        text = self.tokenizer.encode([x.phrase for x in loaded])
        batch = Batch(seed, step, torch.tensor(ids), text=text)
        if isinstance(self.loader, PixelLoader):
            batch = with_images(batch, self.loader.stack([x.image for x in loaded]))
            boxes = torch.zeros(len(loaded), max(len(x.boxes) for x in loaded), 5)
            for row, x in zip(boxes, loaded, strict=True):
                row[: len(x.boxes)] = torch.from_numpy(x.boxes)
            labels = {"boxes": boxes, "regions": overlaps(boxes, boxes[..., 4] > 0, loaded)}
        else:
            regions = self._stack([x.image for x in loaded])
            batch = with_images(batch, regions)
            labels = {"regions": overlaps(regions.boxes, regions.mask, loaded)}
        return replace(batch, labels=labels)

    def _stack(self, images: Sequence[DetectedImage]) -> Regions:
        if self.proposals == "joined" and self._has_whole_image:  # its feature is the mean of the model's own regions
            return replace(stack_regions(images), has_whole_image=True)
        regions = self.loader.stack(images)
        assert isinstance(regions, Regions)
        return regions


def true_boxes(source: Grounded, image: int) -> np.ndarray:
    """The boxes of all objects of an image, as shares ``(n, 5)``, without invalid ones, which are samples of their own.

    Raises BadSample if none is left.
    """
    size, valid = source.size(image), []
    for box in source.objects(image):
        with suppress(BadSample):
            valid.append(box_shares([box], size, ""))
    if not valid:
        raise BadSample(f"{source.name} ({source.split}), image {image}", "no object has a valid box")
    return np.concatenate(valid)


def box_shares(boxes: Sequence[Box], size: tuple[int, int], where: str) -> np.ndarray:
    """Boxes ``(n, 5)`` as shares of the image's sides and area (see batch.Regions), from pixels of an image of `size`.

    A box may extend beyond the image by OVERSHOOT, and is then cut. Raises BadSample for a box that lies further
    outside, is inverted or empty, or has numbers that are not finite.
    """
    width, height = size
    array = np.array(boxes, dtype=np.float64)
    limits = np.array([width, height, width, height])
    if not np.isfinite(array).all() or (array[:, 2:] <= array[:, :2]).any():
        raise BadSample(where, f"expected finite x1 < x2 and y1 < y2, got the box {tuple(boxes[0])}")
    if (array < -OVERSHOOT).any() or (array > limits + OVERSHOOT).any():
        raise BadSample(where, f"the box {tuple(boxes[0])} lies outside the image of {width} x {height} pixels")
    inside = array.clip(0, limits).astype(np.float32)
    if (inside[:, 2:] <= inside[:, :2]).any():
        raise BadSample(where, f"the box {tuple(boxes[0])} lies outside the image of {width} x {height} pixels")
    return shares(inside, width, height, where)


def overlaps(boxes: torch.Tensor, mask: torch.Tensor, loaded: Sequence[LoadedExpression]) -> torch.Tensor:
    """The IoU of each region ``(b, n)`` with the true box of its sample; 0 below 0.5 and at padding.

    Source: ViLBERT's official code.
    """
    rows = [ious(of_image[:, :4].numpy(), x.truth[:4]) for of_image, x in zip(boxes, loaded, strict=True)]
    overlap = torch.from_numpy(np.stack(rows)).float()
    return overlap * (overlap >= THRESHOLD) * mask


def with_whole_image(image: DetectedImage) -> DetectedImage:
    """The regions with a first one for the whole image, as `Regions.with_whole_image` adds it."""
    whole = DetectedImage(
        image.features.mean(0, keepdims=True),
        np.array([[0, 0, 1, 1, 1]], dtype=np.float32),
        None if image.classes is None else np.zeros_like(image.classes[:1]),
    )
    return joined(whole, image)


def joined(first: DetectedImage, second: DetectedImage) -> DetectedImage:
    """The regions of both, without class probabilities if one has none."""
    classes = None
    if first.classes is not None and second.classes is not None:
        classes = np.concatenate([first.classes, second.classes])
    features = np.concatenate([first.features, second.features])
    return DetectedImage(features, np.concatenate([first.boxes, second.boxes]), classes)
