"""BLEU, ROUGE-L and CIDEr-D of a corpus in which each image occurs any number of times, for confidence intervals.

What does not depend on the corpus is computed once: n-gram counts, ROUGE-L, and the sums that CIDEr-D is made of. Its
document frequencies are of the images drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from diptych.metrics.bootstrap import SAMPLES, Resampled
from diptych.metrics.captions import (
    LONGEST,
    SPREAD,
    Gram,
    Words,
    bleu_of_counts,
    bleu_statistics,
    caption_words,
    grams,
    rouge_l,
)

FEWER_SAMPLES = 200
MOST_IMAGES = 5000
"""Images, above which only FEWER_SAMPLES draws are made: 1,000 draws of 1,000 images take some seconds."""


def resampled_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Resampled:
    """The metrics of `captions.caption_scores`, by name, as functions of how often each image occurs."""
    words = [caption_words(text) for text in candidates]
    reference_words = [[caption_words(text) for text in texts] for texts in references]
    statistics = np.array([bleu_statistics(*pair) for pair in zip(words, reference_words, strict=True)])
    rouge = np.array(list(map(rouge_l, words, reference_words)))
    cider = CorpusCIDErD(words, reference_words)

    def metrics(counts: Int[np.ndarray, "draws images"]) -> dict[str, Float[np.ndarray, " draws"]]:
        numbers = counts.sum(1)
        bleu = np.array([bleu_of_counts(totals) for totals in (counts @ statistics).tolist()])
        named = {f"BLEU-{n + 1}": bleu[:, n] for n in range(LONGEST)}
        each = np.array([draw @ cider.each(draw) for draw in counts])
        return named | {"ROUGE-L": counts @ rouge / numbers, "CIDEr-D": each / numbers}

    return Resampled(len(words), metrics, SAMPLES if len(words) <= MOST_IMAGES else FEWER_SAMPLES)


@dataclass(frozen=True)
class _GroupSums:
    """Sums over n-grams of coefficient · idf², one for each group of entries."""

    group: Int[np.ndarray, " entries"]
    gram: Int[np.ndarray, " entries"]
    coefficient: Float[np.ndarray, " entries"]
    groups: int

    def of(self, squares: Float[np.ndarray, " vocabulary"]) -> Float[np.ndarray, "vectors n"]:
        """The sums for each vector of a caption and each n."""
        sums = np.bincount(self.group, self.coefficient * squares[self.gram], self.groups)
        return sums.astype(np.float64).reshape(-1, LONGEST)  # of no entries numpy counts integers


class CorpusCIDErD:
    """CIDEr-D (`captions.cider_d`) of each image, with the document frequencies of any multiset of the images.

    A weight is a count times the idf, which is not negative: so the squared norms of TF-IDF vectors and their clipped
    products are sums of products of counts with idf², over the n-grams.
    """

    def __init__(self, candidates: Sequence[Words], references: Sequence[Sequence[Words]]):
        index: dict[Gram, int] = {}
        documents, own_entries, other_entries, product_entries, penalties = [], [], [], [], []
        owner: list[int] = []
        for image, (words, others) in enumerate(zip(candidates, references, strict=True)):
            own = grams(words)
            own_entries += [(LONGEST * image + len(g) - 1, _place(index, g), c * c) for g, c in own.items()]
            in_image: set[int] = set()
            for other in others:
                counts, first = grams(other), LONGEST * len(owner) - 1
                places = {g: _place(index, g) for g in counts}
                other_entries += [(first + len(g), places[g], c * c) for g, c in counts.items()]
                common = counts.keys() & own.keys()
                product_entries += [(first + len(g), places[g], min(own[g], counts[g]) * counts[g]) for g in common]
                in_image.update(places.values())
                penalties.append(np.exp(-((_pairs(words) - _pairs(other)) ** 2) / (2 * SPREAD**2)))
                owner.append(image)
            documents += [(gram, image) for gram in in_image]
        self.documents = np.array(documents, dtype=np.int64).reshape(-1, 2).T
        self.vocabulary, self.owner, self.penalties = len(index), np.array(owner), np.array(penalties)
        self.factor = 10 / (LONGEST * np.bincount(self.owner, minlength=len(candidates)))
        self.own = _group_sums(own_entries, LONGEST * len(candidates))
        self.other = _group_sums(other_entries, LONGEST * len(owner))
        self.products = _group_sums(product_entries, LONGEST * len(owner))

    def each(self, counts: Int[np.ndarray, " images"]) -> Float[np.ndarray, " images"]:
        """The CIDEr-D of each image, if image i occurs ``counts[i]`` times."""
        gram, image = self.documents
        number = int(counts.sum())
        logarithms = np.log(np.maximum(1, np.arange(number + 1)))
        frequencies = np.bincount(gram, counts[image], self.vocabulary).astype(np.int64)
        squares = (logarithms[number] - logarithms[frequencies]) ** 2
        norms = np.sqrt(self.own.of(squares)[self.owner] * self.other.of(squares))
        cosines = np.divide(self.products.of(squares), norms, out=np.zeros_like(norms), where=norms > 0)
        return self.factor * np.bincount(self.owner, cosines.sum(1) * self.penalties, len(self.factor))


def _place(index: dict[Gram, int], gram: Gram) -> int:
    return index.setdefault(gram, len(index))


def _pairs(words: Words) -> int:
    return max(0, len(words) - 1)


def _group_sums(entries: list[tuple[int, int, int]], groups: int) -> _GroupSums:
    group, gram, coefficient = np.array(entries, dtype=np.int64).reshape(-1, 3).T
    return _GroupSums(group, gram, coefficient.astype(np.float64), groups)
