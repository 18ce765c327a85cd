"""Blindfolds: what can be scored without the pictures, or without the words, is what a model must beat.

Captions that are not of their image, and the truth about which: what a filter of captions is measured on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image as Pillow

from diptych.data.images.loading import file_of, stem_of
from diptych.data.sources.answers import Normalise, commonest, largest, withheld
from diptych.data.sources.base import Captioned, DataError, Question, Questioned
from diptych.data.sources.copies import pictures_of
from diptych.utils.rng import permutation

GREY = (127, 127, 127)


class ShuffledCaptions:
    """The control: every image with the captions of another, dealt by `seed`. Whatever is learned of images and their
    words must then score as chance does.
    """

    def __init__(self, source: Captioned, seed: int = 0):
        self.source = source
        self.name, self.split = f"{source.name} (captions dealt to other images)", source.split
        ring = permutation(seed, 0, len(source), "control").tolist()
        self.owner = dict(zip(ring, ring[1:] + ring[:1], strict=True))  # one cycle: none keeps its own

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


class AblatedQuestions:
    """A question source whose pictures are grey (`blind` "image") or whose questions say nothing ("text")."""

    def __init__(self, source: Questioned, ablate: str):
        if ablate not in ("image", "text"):
            raise ValueError(f"blind is 'image' or 'text', not {ablate!r}")
        self.source, self.ablate = source, ablate
        self.name, self.split = f"{source.name} (blind {ablate})", source.split

    def __len__(self) -> int:
        return len(self.source)

    def question(self, index: int) -> Question:
        question = self.source.question(index)
        return replace(question, text="?") if self.ablate == "text" else question

    def image(self, index: int) -> Pillow.Image:
        picture = self.source.image(index)
        return Pillow.new("RGB", picture.size, GREY) if self.ablate == "image" else picture

    def file(self, index: int) -> bytes:
        """What the picture that is shown is known by: a grey one by its size."""
        return repr(self.image(index).size).encode() if self.ablate == "image" else file_of(self.source, index)

    def stem(self, index: int) -> str:
        """Raises DataError where pictures are hidden: what a detector saw in them cannot be made grey."""
        if self.ablate == "image":
            raise DataError(
                "regions are found by their pictures' names, and pictures are hidden: leave --ablate image out"
            )
        return stem_of(self.source, index)

    def where(self, index: int) -> str:
        return self.source.where(index)


Guess = Callable[[Question], str]


def guesses(train: Questioned, normalise: Normalise) -> dict[str, Guess]:
    """Ways to answer without looking, each learned from the answers of `train`.

    "most common answer" knows nothing of the question, "by kind" what kind of question it is, and "question only" reads
    it: the commonest answer to the same words, else to the same first two. What was not asked in training gets the most
    common answer. Raises DataError where `train` holds no answers.
    """
    counts: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for question in map(train.question, range(len(train))):
        if question.answers:
            answer, words = commonest(question.answers, normalise), _words(question)
            for key in {("all",), ("kind", question.kind), ("words", *words), ("opening", *words[:2])}:
                counts[key][answer] += 1
    if not counts:
        raise DataError(withheld(train))
    best = {key: largest(given) for key, given in counts.items()}
    common = best["all",]

    def read(question: Question) -> str:
        words = _words(question)
        return best.get(("words", *words), best.get(("opening", *words[:2]), common))

    ways: dict[str, Guess] = {"most common answer": lambda question: common}
    if any(key[0] == "kind" and key[1] for key in best):
        ways["by kind"] = lambda question: best.get(("kind", question.kind), common)
    return ways | {"question only": read}


def _words(question: Question) -> list[str]:
    return question.text.lower().replace("?", " ").split()


class CorruptedCaptions:
    """A source of which a `share` of the captions, drawn by `seed`, are dealt to other images of it.

    As many texts as before are there, each once; `owners` tells the image and the place that each caption is truly of.
    `images`: those among which captions are dealt, where not all; the others keep theirs. Raises DataError where there
    are too few to deal.
    """

    def __init__(self, source: Captioned, share: float, seed: int = 0, images: range | None = None):
        if not 0 <= share <= 1:
            raise DataError(f"a share of {share} captions cannot be noised; give 0 to 1")
        self.source, self.split = source, source.split
        self.name = f"{source.name} ({share:.0%} of its captions dealt to other images)"
        counts = [len(source.captions(i)) for i in range(len(source))]
        self._first = np.cumsum([0, *counts])
        image = np.repeat(np.arange(len(counts)), counts)
        self._from = np.arange(len(image))  # of each caption the one that stands in its place
        among = range(len(counts)) if images is None else images
        first, last = (self._first[i] for i in (among.start, max(among.start, among.stop)))
        dealt = first + permutation(seed, 0, int(last - first), "noise")[: round(share * (last - first))]
        self._from[dealt] = _dealt(dealt, np.array(pictures_of(source, len(source)))[image])
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
        """The image that each caption of image `index` is truly of, and its place among that image's captions."""
        given = self._from[self._first[index] : self._first[index + 1]]
        return [(int(self._image[g]), int(g - self._first[self._image[g]])) for g in given]

    def where(self, index: int) -> str:
        return self.source.where(index)


def _dealt(places: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The captions at `places` in another order, none at a picture of its own. Raises DataError where there is none such."""
    given = np.roll(places, 1)
    for i in np.flatnonzero(image[given] == image[places]):
        if image[given[i]] != image[places[i]]:  # an exchange before has mended it
            continue
        others = (image[given] != image[places[i]]) & (image[places] != image[given[i]])
        if not others.any():
            raise DataError("too few images to deal so many captions to others; give a smaller share")
        j = np.flatnonzero(others)[0]
        given[i], given[j] = given[j], given[i]
    return given
