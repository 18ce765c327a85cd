"""Examples for learning to rank: an image, its caption, and captions of other images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice

import numpy as np

from diptych.data.examples import LONGEST_TEXT, LoadedPair, PairExamples, readable
from diptych.data.settings import ImageSettings
from diptych.data.shown import Shows
from diptych.data.source import BadSample, Captioned, DataError, NoSplit
from diptych.data.tokenizer import Tokenizer
from diptych.inputs import Batch
from diptych.keyed import uniform

TRIES = 4  # draws per false text: one may fall on the image itself


class RankedExamples:
    """Pairs with `false` texts of other images each, drawn uniformly and keyed by (seed, step, id) (ViLT, 4.2).

    A false text is a caption of another image that is no caption of this one too, but for capitals and blanks. Where fewer are drawn
    than there should be, those drawn come again; where none is drawn, the first behind the first draw is taken. A sample for
    which the data holds none is a bad sample. Raises NoSplit where that is so of all samples.

    Images are told apart by their place in the source: whether two are one photo under two names would be known only by
    reading every image whose text is drawn, and such are drawn no more often than chance has it.
    """

    def __init__(self, source: Captioned, tokenizer: Tokenizer, images: ImageSettings | Shows, false: int = 15):
        if false < 1:
            raise DataError(f"false_texts is {false}: ranking needs at least one false text for each caption")
        if all(_texts(source, i) == _texts(source, 0) for i in range(1, len(source))):
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
        owner, source = self.pairs.owner, self.pairs.source
        own = _texts(source, int(owner[index]))

        def false(places: Iterable[int]) -> Iterator[str]:
            others = (self.pairs.caption(int(i)) for i in places if owner[i] != owner[index])
            return (text for text in others if readable(text) and _same(text) not in own)

        drawn = (uniform(seed, step, [index], "false texts", TRIES * self.false)[0] * len(owner)).astype(np.int64)
        texts = list(islice(false(drawn.tolist()), self.false))
        if not texts:
            behind = ((int(drawn[0]) + i) % len(owner) for i in range(len(owner)))
            texts = list(islice(false(behind), 1))
        if not texts:
            raise BadSample(
                source.where(int(owner[index])), "no false text: every caption of the data is one of its own"
            )
        return list(islice(cycle(texts), self.false))

    def collate(self, loaded: list[tuple[LoadedPair, list[str]]], ids: Sequence[int], seed: int, step: int) -> Batch:
        batch = self.pairs.collate([pair for pair, _ in loaded], ids, seed, step)
        texts = [text for _, texts in loaded for text in texts]
        return replace(batch, false_texts=self.pairs.tokenizer.encode(texts))


def _texts(source: Captioned, image: int) -> set[str]:
    """The captions of an image that can be read, as they are compared."""
    return {_same(text) for text in source.captions(image) if readable(text)}


def _same(text: str) -> str:
    """A text without capitals and further blanks, in which captions that say the same are often written."""
    return " ".join(text[:LONGEST_TEXT].lower().split())
