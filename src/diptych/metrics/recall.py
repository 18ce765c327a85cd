"""Image-text retrieval: how often what belongs is among the first k (Karpathy and Fei-Fei, 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class RecallAtK:
    """R@k in [0, 1] both ways, with what it is to be read against: the size of the gallery and a blind guess."""

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
    """R@k from every image's score with every text; `owner` is each text's image. `of_images`: the scores by which a text
    ranks images, where they are others.

    Ties are read pessimistically: a wrong candidate with the same score stands before the right one, so a model that
    says the same of everything scores 0. Raises ValueError for NaN and for an image without a text.
    """
    images, texts = scores.shape
    captions = _captions(scores, owner)
    own = torch.arange(images, device=scores.device)[:, None] == owner[None, :]
    to_image = scores if of_images is None else of_images.T
    _captions(to_image, owner)

    blind = chance(captions, ks)
    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    text_rank = ((scores >= best) & ~own).sum(1)
    image_rank = ((to_image >= to_image.gather(0, owner[None, :])) & ~own).sum(0)
    return RecallAtK(
        image_to_text={k: (text_rank < k).double().mean().item() for k in ks},
        text_to_image={k: (image_rank < k).double().mean().item() for k in ks},
        images=images,
        texts=texts,
        chance_image_to_text=blind.image_to_text,
        chance_text_to_image=blind.text_to_image,
    )


@dataclass(frozen=True)
class Chance:
    """R@k of a blind guess, both ways."""

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]


def chance(captions: Sequence[int], ks: Sequence[int] = (1, 5, 10)) -> Chance:
    """What candidates drawn blindly reach in a gallery whose images have so many captions each."""
    texts, images = sum(captions), len(captions)
    return Chance(
        image_to_text={k: _mean([_hit(texts, n, k) for n in captions]) for k in ks},
        text_to_image={k: _hit(images, 1, k) for k in ks},
    )


def _captions(scores: Tensor, owner: Tensor) -> list[int]:
    """How many texts each image has."""
    images, texts = scores.shape
    if bool(scores.isnan().any()):
        raise ValueError("scores hold NaN: they cannot be ranked")
    if not texts or int(owner.min()) < 0 or int(owner.max()) >= images:
        raise ValueError(f"owner must name one of {images} images for each of at least one text")
    counts = owner.bincount(minlength=images).tolist()
    if 0 in counts:
        raise ValueError(f"image {counts.index(0)} owns no text: leave it out of the gallery")
    return counts


def _hit(candidates: int, right: int, k: int) -> float:
    """The chance that k candidates drawn blindly hold at least one of the right ones."""
    k = min(k, candidates)
    return 1 - comb(candidates - right, k) / comb(candidates, k)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
