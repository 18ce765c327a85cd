"""Examples for learning to rank: an image, its caption, and captions of other images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice

import numpy as np

from diptych.batch import Batch
from diptych.config.data import ImageSettings
from diptych.data.examples import LONGEST_TEXT, LoadedPair, PairExamples, readable
from diptych.data.images.loading import ImageLoader
from diptych.data.sources.base import BadSample, Captioned, DataError, NoSplit
from diptych.data.sources.copies import pictures_of
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.utils.rng import uniform

TRIES = 4  # draws per false text: one may fall on the image itself


class RankedExamples:
    """Pairs with `false` texts of other pictures each, drawn uniformly and keyed by (seed, step, id) (ViLT, 4.2).

    A false text is a caption of another picture that is no caption of this one too, but for capitals and blanks. Images whose
    bytes are equal are one picture (data/copies.py). Where fewer are drawn than there should be, those drawn come again; where
    none is drawn, the first behind the first draw is taken. A sample for which the data holds none is a bad sample. Raises
    NoSplit where that is so of all samples.
    """

    def __init__(self, source: Captioned, tokenizer: Tokenizer, images: ImageSettings | ImageLoader, false: int = 15):
        if false < 1:
            raise DataError(f"false_texts is {false}: ranking needs at least one false text for each caption")
        self.picture = np.array(pictures_of(source, len(source)))  # of each image
        self.source = source
        pictures = dict.fromkeys(self.picture.tolist())
        if all(self._own_texts(picture) == self._own_texts(0) for picture in pictures):
            raise NoSplit(
                f"{source.name} ({source.split}): no false text for any image: ranking needs at least two images with different captions"
            )
        self.pairs = PairExamples(source, tokenizer, images, matching=0.0)
        self.false = false

    def __len__(self) -> int:
        return len(self.pairs)

    def length(self, index: int) -> int:
        return self.pairs.length(index)

    def load(self, index: int, seed: int, step: int) -> tuple[LoadedPair, list[str]]:
        return self.pairs.load(index, seed, step), self._false_texts(index, seed, step)

    def _false_texts(self, index: int, seed: int, step: int) -> list[str]:
        """As many as there should be. Raises BadSample where the data holds none."""
        picture = self.picture[self.pairs.owner]  # of each example
        own = self._own_texts(int(picture[index]))

        def false(places: Iterable[int]) -> Iterator[str]:
            others = (self.pairs.caption(int(i)) for i in places if picture[i] != picture[index])
            return (text for text in others if readable(text) and _same(text) not in own)

        drawn = (uniform(seed, step, [index], "false texts", TRIES * self.false)[0] * len(picture)).astype(np.int64)
        texts = list(islice(false(drawn.tolist()), self.false))
        if not texts:
            behind = ((int(drawn[0]) + i) % len(picture) for i in range(len(picture)))
            texts = list(islice(false(behind), 1))
        if not texts:
            where = self.source.where(int(self.pairs.owner[index]))
            raise BadSample(where, "no false text: every caption of the data is one of its own")
        return list(islice(cycle(texts), self.false))

    def _own_texts(self, picture: int) -> set[str]:
        """The captions of a picture under all its names, as they are compared."""
        images = np.flatnonzero(self.picture == picture).tolist()
        return {_same(text) for image in images for text in self.source.captions(image) if readable(text)}

    def collate(self, loaded: list[tuple[LoadedPair, list[str]]], ids: Sequence[int], seed: int, step: int) -> Batch:
        batch = self.pairs.collate([pair for pair, _ in loaded], ids, seed, step)
        texts = [text for _, texts in loaded for text in texts]
        return replace(batch, negative_texts=self.pairs.tokenizer.encode(texts))


def _same(text: str) -> str:
    """A text without capitals and further blanks, in which captions that say the same are often written."""
    return " ".join(text[:LONGEST_TEXT].lower().split())
