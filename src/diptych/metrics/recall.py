"""Recall at k (R@k) of image-text retrieval, in both directions (Karpathy and Fei-Fei, 2015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.metrics.bootstrap import Resampled, joined_means

IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image to text", "text to image"


@dataclass(frozen=True)
class RecallAtK:
    """R@k in [0, 1] in both directions, with the size of the gallery and chance level."""

    image_to_text: dict[int, float]  # text retrieval: any of the image's own captions among the first k texts
    text_to_image: dict[int, float]  # image retrieval: the text's one image among the first k images
    images: int
    texts: int
    chance_image_to_text: dict[int, float]
    chance_text_to_image: dict[int, float]
    text_ranks: Int[Tensor, " images"]  # for each image the number of others' texts before its best text
    image_ranks: Int[Tensor, " texts"]  # for each text the number of other images before its own

    def named(self, suffix: str = "") -> dict[str, float]:
        """The recalls by name: "image to text R@1", …"""
        both = {IMAGE_TO_TEXT: self.image_to_text, TEXT_TO_IMAGE: self.text_to_image}
        return {
            f"{direction} R@{k}{suffix}": value for direction, values in both.items() for k, value in values.items()
        }

    def hits(self, suffix: str = "") -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """For each recall, by the same names, whether each image's text (0 or 1), and each text's image, is found."""

        def of(direction: str, ranks: Tensor) -> dict[str, list[float]]:
            return {f"{direction} R@{k}{suffix}": (ranks < k).double().tolist() for k in self.image_to_text}

        return of(IMAGE_TO_TEXT, self.text_ranks), of(TEXT_TO_IMAGE, self.image_ranks)


def resampled_recalls(owner: Int[Tensor, " texts"], recalls: Mapping[str, RecallAtK]) -> Resampled:
    """The recalls as functions of how often each photograph is drawn as a query, together with its texts.

    The gallery stays whole: ranks are those among all images and all texts, whichever are drawn. In a gallery of the
    photographs drawn, copies of a photograph would compete with it.

    Args:
        owner: the index of each text's image.
        recalls: by the suffix of their names, as ", before re-ranking".
    """
    images = range(next(iter(recalls.values())).images)
    both = [recall.hits(suffix) for suffix, recall in recalls.items()]
    of_images, of_texts = (
        {name: row for part in parts for name, row in part.items()} for parts in zip(*both, strict=True)
    )
    return joined_means((images, of_images), (owner.tolist(), of_texts))


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
        text_ranks=text_rank,
        image_ranks=image_rank,
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
