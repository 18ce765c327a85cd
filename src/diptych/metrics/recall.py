"""Recall at k (R@k) of image-text retrieval, in both directions (Karpathy and Fei-Fei, 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class RecallAtK:
    """R@k in [0, 1] in both directions, with the size of the gallery and chance level."""

    image_to_text: dict[int, float]  # text retrieval: any of the image's own captions among the first k texts
    text_to_image: dict[int, float]  # image retrieval: the text's one image among the first k images
    images: int
    texts: int
    chance_image_to_text: dict[int, float]
    chance_text_to_image: dict[int, float]


def recall(
    scores: Float[Tensor, "images texts"],
    owner: Int[Tensor, " texts"],
    ks: Sequence[int] = (1, 5, 10),
    of_images: Float[Tensor, "texts images"] | None = None,
) -> RecallAtK:
    """R@k of the scores of all images with all texts.

    Args:
        owner: the index of each text's image.
        of_images: scores by which texts rank images, if they differ from `scores`.

    Ties count as errors: a wrong candidate with the same score ranks first, so that constant scores give 0. Raises
    ValueError for NaN and for an image without a text.
    """
    images, texts = scores.shape
    captions = _captions(scores, owner)
    own = torch.arange(images, device=scores.device)[:, None] == owner[None, :]
    to_image = scores if of_images is None else of_images.T
    _captions(to_image, owner)

    chance_level = chance(captions, ks)
    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    text_rank = ((scores >= best) & ~own).sum(1)
    image_rank = ((to_image >= to_image.gather(0, owner[None, :])) & ~own).sum(0)
    return RecallAtK(
        image_to_text={k: (text_rank < k).double().mean().item() for k in ks},
        text_to_image={k: (image_rank < k).double().mean().item() for k in ks},
        images=images,
        texts=texts,
        chance_image_to_text=chance_level.image_to_text,
        chance_text_to_image=chance_level.text_to_image,
    )


@dataclass(frozen=True)
class Chance:
    """R@k of random ranking, in both directions."""

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]


def chance(captions: Sequence[int], ks: Sequence[int] = (1, 5, 10)) -> Chance:
    """Expected R@k of random ranking; `captions`: the number of captions of each image of the gallery."""
    texts, images = sum(captions), len(captions)
    return Chance(
        image_to_text={k: _mean([_hit(texts, n, k) for n in captions]) for k in ks},
        text_to_image={k: _hit(images, 1, k) for k in ks},
    )


def _captions(scores: Tensor, owner: Tensor) -> list[int]:
    """The number of texts of each image, after checks of the arguments of `recall`."""
    images, texts = scores.shape
    if bool(scores.isnan().any()):
        raise ValueError("scores contain NaN and cannot be ranked")
    if not texts or int(owner.min()) < 0 or int(owner.max()) >= images:
        raise ValueError(f"owner must give the index of one of {images} images for each of at least one text")
    counts = owner.bincount(minlength=images).tolist()
    if 0 in counts:
        raise ValueError(f"image {counts.index(0)} has no text: remove it from the gallery")
    return counts


def _hit(candidates: int, right: int, k: int) -> float:
    """The probability that k random candidates contain at least one of `right` correct ones."""
    k = min(k, candidates)
    return 1 - comb(candidates - right, k) / comb(candidates, k)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
