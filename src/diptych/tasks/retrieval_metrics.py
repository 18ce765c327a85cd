"""Metrics of image-text retrieval: recalls of a gallery, or their means over its folds, with chance level and rsum.

COCO 1k are the means over five folds of 1,000 images, in the order of Karpathy's test split (VSE++, section 4.1); COCO
5k are the recalls of all 5,000.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.data.sources.base import Captioned, DataError
from diptych.metrics.recall import RecallAtK, recall
from diptych.tasks.gallery import Gallery

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

    def recalls(
        self,
        gallery: Gallery,
        scores: Float[Tensor, "images texts"],
        of_images: Float[Tensor, "texts images"] | None = None,
    ) -> list[RecallAtK]:
        """The recalls of each fold that has an image.

        Args:
            of_images: scores by which texts rank images, if they differ from `scores`.
        """
        image_fold, text_fold = self.of_images(gallery), self.of_texts(gallery)
        owner = torch.tensor(gallery.image_of_text, dtype=torch.long)
        recalls = []
        for fold in image_fold.unique().tolist():
            images, texts = ((folds == fold).nonzero().flatten() for folds in (image_fold, text_fold))
            of_texts = scores[images][:, texts]
            by_text = None if of_images is None else of_images[texts][:, images]
            recalls.append(recall(of_texts, torch.searchsorted(images, owner[texts]), of_images=by_text))
        return recalls


def named_recalls(folds: Sequence[RecallAtK]) -> dict[str, float]:
    """The recalls of both directions, each the mean over folds, and their sum in percent."""
    metrics = {
        f"{direction} R@{k}": sum(getattr(fold, field)[k] for fold in folds) / len(folds)
        for direction, field in (("image to text", "image_to_text"), ("text to image", "text_to_image"))
        for k in folds[0].image_to_text
    }
    return {**metrics, RSUM: 100 * sum(metrics.values())}


def chance_recalls(folds: Sequence[RecallAtK]) -> dict[str, float]:
    """The recalls of random ranking, each the mean over folds."""
    return {
        f"{direction} R@{k}, chance": sum(getattr(fold, field)[k] for fold in folds) / len(folds)
        for k in folds[0].image_to_text
        for direction, field in (("image to text", "chance_image_to_text"), ("text to image", "chance_text_to_image"))
    }
