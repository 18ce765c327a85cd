"""Metrics of image-text retrieval: recalls of a gallery, or their means over its folds, with chance level and rsum.

COCO 1k are the means over five folds of 1,000 images, in the order of Karpathy's test split (VSE++, section 4.1); COCO
5k are the recalls of all 5,000.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from diptych.data.sources.base import Captioned, DataError
from diptych.metrics.bootstrap import Resampled
from diptych.metrics.recall import IMAGE_TO_TEXT, TEXT_TO_IMAGE, RecallAtK, recall, resampled_recalls
from diptych.tasks.gallery import Gallery

T = TypeVar("T", float, np.ndarray)
Directions = tuple[Tensor, Tensor]
"""Scores (images, texts), and (texts, images) by which texts rank images."""

RSUM = "rsum (of 600)"
"""The sum of the six recalls in percent."""


class Folds:
    """A gallery's images and texts divided into folds of equal size, in the order of the images of its source.

    Images that cannot be read are left out after the division, so that they move no other image to another fold.

    Args:
        source: the images before any was left out.
        num_folds: 1 for the whole gallery.

    Raises:
        DataError: the number of images is not a multiple of `num_folds`.
    """

    def __init__(self, source: Captioned, num_folds: int):
        if len(source) % num_folds:
            most = len(source) - len(source) % num_folds
            raise DataError(
                f"{source.name} ({source.split}): {len(source):,} images cannot be divided into {num_folds} folds of "
                f"equal size; " + (f"use --gallery {most}" if most else f"use --folds {len(source)} or less")
            )
        self.num_folds, self.size = num_folds, len(source) // num_folds

    def of_images(self, gallery: Gallery) -> Int[Tensor, " images"]:
        """The index of each image's fold."""
        return torch.tensor(gallery.positions, dtype=torch.long) // self.size

    def of_texts(self, gallery: Gallery) -> Int[Tensor, " texts"]:
        """The index of each text's fold: its image's."""
        return self.of_images(gallery)[torch.tensor(gallery.image_of_text, dtype=torch.long)]

    def compared(self, gallery: Gallery) -> Bool[Tensor, "images texts"]:
        """Which images are compared with which texts: those of their fold."""
        return self.of_images(gallery)[:, None] == self.of_texts(gallery)[None, :]

    def recalls(self, gallery: Gallery, scores: Mapping[str, Directions]) -> FoldedRecalls:
        """The recalls of each fold that has an image, of each of `scores` by the suffix of their names."""
        image_fold, text_fold = self.of_images(gallery), self.of_texts(gallery)
        owner = torch.tensor(gallery.image_of_text, dtype=torch.long)
        parts = []
        for fold in image_fold.unique().tolist():
            images, texts = ((folds == fold).nonzero().flatten() for folds in (image_fold, text_fold))
            own = torch.searchsorted(images, owner[texts])
            recalls = {
                suffix: recall(image_to_text[images][:, texts], own, of_images=text_to_image[texts][:, images])
                for suffix, (image_to_text, text_to_image) in scores.items()
            }
            parts.append(_Fold(images, own, recalls))
        return FoldedRecalls(parts)


@dataclass(frozen=True)
class _Fold:
    """One fold: its images' indices, the index of each text's image among them, and recalls by suffix."""

    images: Int[Tensor, " images"]
    owner: Int[Tensor, " texts"]
    recalls: Mapping[str, RecallAtK]


@dataclass(frozen=True)
class FoldedRecalls:
    """Recalls by fold; each metric is the mean over folds."""

    folds: Sequence[_Fold]

    def named(self, suffix: str = "") -> dict[str, float]:
        """The recalls of both directions whose names end in `suffix`, and their sum in percent."""
        return _with_sum(_means([fold.recalls[suffix].named(suffix) for fold in self.folds]), suffix)

    def chance(self) -> dict[str, float]:
        """The recalls of random ranking."""
        return _means([_chance(next(iter(fold.recalls.values()))) for fold in self.folds])

    def resampled(self) -> Resampled:
        """The recalls as functions of how often each photograph is drawn (see `resampled_recalls`)."""
        parts = [(fold.images.numpy(), resampled_recalls(fold.owner, fold.recalls)) for fold in self.folds]

        def metrics(counts: np.ndarray) -> dict[str, np.ndarray]:
            recalls = _means([part.metrics(counts[:, images]) for images, part in parts])
            by_suffix = {suffix: one.named(suffix) for suffix, one in self.folds[0].recalls.items()}
            sums = [_with_sum({name: recalls[name] for name in names}, end) for end, names in by_suffix.items()]
            return {name: value for part in sums for name, value in part.items()}

        return Resampled(sum(len(images) for images, _ in parts), metrics)


def _means(folds: Sequence[Mapping[str, T]]) -> dict[str, T]:
    """The mean of each metric over folds."""
    return {name: sum(fold[name] for fold in folds) / len(folds) for name in folds[0]}  # type: ignore[operator, misc]


def _with_sum(recalls: Mapping[str, T], suffix: str) -> dict[str, T]:
    """The recalls and their sum in percent."""
    return {**recalls, RSUM + suffix: 100 * sum(recalls.values())}  # type: ignore[operator, type-var, dict-item]


def _chance(recalls: RecallAtK) -> dict[str, float]:
    """The chance level of each recall."""
    both = {IMAGE_TO_TEXT: recalls.chance_image_to_text, TEXT_TO_IMAGE: recalls.chance_text_to_image}
    return {f"{way} R@{k}, chance": both[way][k] for k in recalls.image_to_text for way in both}
