"""Training examples for ranking losses: an image, its caption, and captions of other images as negatives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice

import numpy as np

from diptych.batch import Batch
from diptych.config.data import ImageSettings
from diptych.data.examples import MAX_TEXT_CHARS, LoadedPair, PairExamples, readable
from diptych.data.images.loading import ImageLoader
from diptych.data.sources.base import BadSample, Captioned, DataError, NoSplit
from diptych.data.sources.copies import first_copies_of
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.utils.rng import uniform

TRIES = 4  # draws per negative text, because one may fall on the image itself


class RankedExamples:
    """Pairs with `num_negatives` negative texts each, drawn uniformly, keyed by (seed, step, id) (ViLT, section 4.2).

    A negative text is a caption of another image that differs, ignoring case and white space, from all captions of this
    one. Images with equal bytes count as one (data/sources/copies.py). If too few are drawn, those drawn are repeated;
    if none is, the first valid caption after the first draw is used. A sample without any valid negative is a bad
    sample.

    Raises:
        NoSplit: no sample has a valid negative.
    """

    def __init__(
        self, source: Captioned, tokenizer: Tokenizer, images: ImageSettings | ImageLoader, num_negatives: int = 15
    ):
        if num_negatives < 1:
            raise DataError(f"negative_texts must be at least 1: got {num_negatives}")
        self.picture = np.array(first_copies_of(source, len(source)))  # distinct image of each image index
        self.source = source
        image_ids = dict.fromkeys(self.picture.tolist())
        if all(self._own_texts(image_id) == self._own_texts(0) for image_id in image_ids):
            raise NoSplit(
                f"{source.name} ({source.split}): no negative text for any image: ranking needs at least two "
                "images with different captions"
            )
        self.pairs = PairExamples(source, tokenizer, images, matching=0.0)
        self.num_negatives = num_negatives

    def __len__(self) -> int:
        return len(self.pairs)

    def length(self, index: int) -> int:
        return self.pairs.length(index)

    def load(self, index: int, seed: int, step: int) -> tuple[LoadedPair, list[str]]:
        return self.pairs.load(index, seed, step), self._negative_texts(index, seed, step)

    def _negative_texts(self, index: int, seed: int, step: int) -> list[str]:
        """`num_negatives` negative texts. Raises BadSample if the data has none."""
        image_ids = self.picture[self.pairs.owner]  # distinct image of each example
        own = self._own_texts(int(image_ids[index]))

        def negatives(examples: Iterable[int]) -> Iterator[str]:
            others = (self.pairs.caption(int(i)) for i in examples if image_ids[i] != image_ids[index])
            return (text for text in others if readable(text) and _comparable(text) not in own)

        draws = uniform(seed, step, [index], "false texts", TRIES * self.num_negatives)[0]  # in [0, 1)
        drawn = (draws * len(image_ids)).astype(np.int64)
        texts = list(islice(negatives(drawn.tolist()), self.num_negatives))
        if not texts:
            following = ((int(drawn[0]) + i) % len(image_ids) for i in range(len(image_ids)))
            texts = list(islice(negatives(following), 1))
        if not texts:
            where = self.source.where(int(self.pairs.owner[index]))
            raise BadSample(where, "no negative text: every caption of the data is one of its own")
        return list(islice(cycle(texts), self.num_negatives))

    def _own_texts(self, image_id: int) -> set[str]:
        """Captions of a distinct image under all its file names, normalised for comparison."""
        images = np.flatnonzero(self.picture == image_id).tolist()
        return {_comparable(text) for image in images for text in self.source.captions(image) if readable(text)}

    def collate(self, loaded: list[tuple[LoadedPair, list[str]]], ids: Sequence[int], seed: int, step: int) -> Batch:
        batch = self.pairs.collate([pair for pair, _ in loaded], ids, seed, step)
        texts = [text for _, texts in loaded for text in texts]
        return replace(batch, negative_texts=self.pairs.tokenizer.encode(texts))


def _comparable(text: str) -> str:
    """The text in lower case with single spaces, so that trivially different captions compare equal."""
    return " ".join(text[:MAX_TEXT_CHARS].lower().split())
