"""Captions that are not of their image, and the truth about which: what a filter of captions is measured on."""

from __future__ import annotations

import numpy as np
from PIL import Image as Pillow

from diptych.data.copies import pictures_of
from diptych.data.shown import file_of, stem_of
from diptych.data.source import Captioned, DataError
from diptych.keyed import permutation


class NoisedCaptions:
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
