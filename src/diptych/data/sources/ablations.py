"""Ablated and corrupted sources: baselines without image or text, shuffled captions, and noise for caption filters."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image as Pillow

from diptych.data.images.loading import file_of, stem_of
from diptych.data.sources.answers import Normalise, commonest, largest, withheld
from diptych.data.sources.base import Box, Captioned, DataError, Expression, Grounded, Question, Questioned
from diptych.data.sources.copies import first_copies_of
from diptych.utils.rng import permutation

GREY = (127, 127, 127)


class ShuffledCaptions:
    """Control: every image with the captions of another, shuffled by `seed`. Any model must then score at chance."""

    def __init__(self, source: Captioned, seed: int = 0):
        self.source = source
        self.name, self.split = f"{source.name} (shuffled captions)", source.split
        ring = permutation(seed, 0, len(source), "control").tolist()
        self.owner = dict(
            zip(ring, ring[1:] + ring[:1], strict=True)
        )  # a single cycle, so no image keeps its own captions

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> Pillow.Image:
        return self.source.image(index)

    def file(self, index: int) -> bytes:
        return file_of(self.source, index)

    def stem(self, index: int) -> str:
        return stem_of(self.source, index)

    def captions(self, index: int) -> tuple[str, ...]:
        return self.source.captions(self.owner[index])

    def where(self, index: int) -> str:
        return f"{self.source.where(index)} with the captions of {self.source.where(self.owner[index])}"


HIDDEN_TEXT = "?"
"""What replaces a hidden text."""


class _Ablated:
    """What sources of texts about images share whose images are grey (`ablate` "image") or texts hidden ("text")."""

    def __init__(self, source: Any, ablate: str):
        if ablate not in ("image", "text"):
            raise ValueError(f"ablate must be 'image' or 'text': got {ablate!r}")
        self.source, self.ablate = source, ablate
        self.name, self.split = f"{source.name} (without {ablate})", source.split

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> Pillow.Image:
        image = self.source.image(index)
        return Pillow.new("RGB", image.size, GREY) if self.ablate == "image" else image

    def file(self, index: int) -> bytes:
        """Bytes that identify an image; a grey one is identified by its size."""
        return repr(self.source.image(index).size).encode() if self.ablate == "image" else file_of(self.source, index)

    def stem(self, index: int) -> str:
        """File stem of an image. Raises DataError for hidden images: a detector's regions cannot be made grey."""
        if self.ablate == "image":
            raise DataError("--ablate image cannot hide regions, which are read from a detector's files: leave it out")
        return stem_of(self.source, index)

    def where(self, index: int) -> str:
        return self.source.where(index)


class AblatedQuestions(_Ablated):
    """Questions with grey images (`ablate` "image") or with "?" as every question ("text")."""

    source: Questioned

    def question(self, index: int) -> Question:
        question = self.source.question(index)
        return replace(question, text=HIDDEN_TEXT) if self.ablate == "text" else question


class AblatedExpressions(_Ablated):
    """Referring expressions with grey images (`ablate` "image") or with "?" as every phrase ("text")."""

    source: Grounded

    def expression(self, index: int) -> Expression:
        expression = self.source.expression(index)
        return replace(expression, phrase=HIDDEN_TEXT) if self.ablate == "text" else expression

    def objects(self, image: int) -> Sequence[Box]:
        return self.source.objects(image)

    def size(self, image: int) -> tuple[int, int]:
        return self.source.size(image)


Guess = Callable[[Question], str]


def guesses(train: Questioned, normalise: Normalise) -> dict[str, Guess]:
    """Baselines that answer without the image, fitted to the answers of `train`.

    "most common answer" ignores the question, "by kind" uses its kind, and "question only" its words: the most common
    answer to the same words, else to the same first two. Unseen questions get the most common answer. Raises DataError
    if `train` has no answers.
    """
    counts: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for question in map(train.question, range(len(train))):
        if question.answers:
            answer, words = commonest(question.answers, normalise), _words(question)
            for key in {("all",), ("kind", question.kind), ("words", *words), ("opening", *words[:2])}:
                counts[key][answer] += 1
    if not counts:
        raise DataError(withheld(train))
    best = {key: largest(counter) for key, counter in counts.items()}
    common = best["all",]

    def by_words(question: Question) -> str:
        words = _words(question)
        return best.get(("words", *words), best.get(("opening", *words[:2]), common))

    ways: dict[str, Guess] = {"most common answer": lambda question: common}
    if any(key[0] == "kind" and key[1] for key in best):
        ways["by kind"] = lambda question: best.get(("kind", question.kind), common)
    return ways | {"question only": by_words}


def _words(question: Question) -> list[str]:
    return question.text.lower().replace("?", " ").split()


class CorruptedCaptions:
    """A source with a `share` of its captions, drawn by `seed`, moved to other images.

    The number of captions does not change and each is used once; `owners` gives the true image of each. `images`:
    range of images whose captions may move, if not all. Raises DataError if there are too few images.
    """

    def __init__(self, source: Captioned, share: float, seed: int = 0, images: range | None = None):
        if not 0 <= share <= 1:
            raise DataError(f"the share of corrupted captions must be in [0, 1]: got {share}")
        self.source, self.split = source, source.split
        self.name = f"{source.name} ({share:.0%} of captions corrupted)"
        counts = [len(source.captions(i)) for i in range(len(source))]
        self._first = np.cumsum([0, *counts])
        image = np.repeat(np.arange(len(counts)), counts)
        self._from = np.arange(len(image))  # index of the caption shown at each position
        among = range(len(counts)) if images is None else images
        first, last = (self._first[i] for i in (among.start, max(among.start, among.stop)))
        moved = first + permutation(seed, 0, int(last - first), "noise")[: round(share * (last - first))]
        self._from[moved] = _deranged(moved, np.array(first_copies_of(source, len(source)))[image])
        self._image = image

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> Pillow.Image:
        return self.source.image(index)

    def file(self, index: int) -> bytes:
        return file_of(self.source, index)

    def stem(self, index: int) -> str:
        return stem_of(self.source, index)

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(self.source.captions(image)[place] for image, place in self.owners(index))

    def owners(self, index: int) -> list[tuple[int, int]]:
        """True image of each caption shown with image `index`, and its position among that image's captions."""
        shown = self._from[self._first[index] : self._first[index + 1]]
        return [(int(self._image[i]), int(i - self._first[self._image[i]])) for i in shown]

    def where(self, index: int) -> str:
        return self.source.where(index)


def _deranged(captions: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The captions in an order in which none is at its own image. Raises DataError if no such order is found."""
    order = np.roll(captions, 1)
    for i in np.flatnonzero(image[order] == image[captions]):
        if image[order[i]] != image[captions[i]]:  # fixed by an earlier swap
            continue
        others = (image[order] != image[captions[i]]) & (image[captions] != image[order[i]])
        if not others.any():
            raise DataError("too few images to move so many captions to others; lower --fraction")
        j = np.flatnonzero(others)[0]
        order[i], order[j] = order[j], order[i]
    return order
