"""Examples for learning to rank: an image, its caption, and captions of other images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from diptych.data.copies import pictures_of
from diptych.data.examples import LoadedPair, PairExamples, readable
from diptych.data.settings import ImageSettings
from diptych.data.shown import Shows
from diptych.data.source import Captioned, DataError
from diptych.data.tokenizer import Tokenizer
from diptych.inputs import Batch
from diptych.keyed import uniform

TRIES = 4  # draws per false text: one may fall on the image itself


class RankedExamples:
    """Pairs with `false` texts of other pictures each, drawn uniformly and keyed by (seed, step, id) (ViLT, 4.2).

    Images whose bytes are equal are one picture (data/copies.py), so no text of it is a false one.
    """

    def __init__(self, source: Captioned, tokenizer: Tokenizer, images: ImageSettings | Shows, false: int = 15):
        self.picture = np.array(pictures_of(source, len(source)))  # of each image
        if len(set(self.picture.tolist())) < 2:
            raise DataError(f"{source.name} ({source.split}): ranking needs captions of at least two images")
        self.pairs = PairExamples(source, tokenizer, images, matching=0.0)
        self.false = false

    def __len__(self) -> int:
        return len(self.pairs)

    def length(self, index: int) -> int:
        return self.pairs.length(index)

    def load(self, index: int, seed: int, step: int) -> tuple[LoadedPair, list[str]]:
        picture = self.picture[self.pairs.owner]  # of each example
        drawn = (uniform(seed, step, [index], "false texts", TRIES * self.false)[0] * len(picture)).astype(np.int64)
        others = (self.pairs.caption(int(i)) for i in drawn if picture[i] != picture[index])
        return self.pairs.load(index, seed, step), list(islice(filter(readable, others), self.false))

    def collate(self, loaded: list[tuple[LoadedPair, list[str]]], ids: Sequence[int], seed: int, step: int) -> Batch:
        batch = self.pairs.collate([pair for pair, _ in loaded], ids, seed, step)
        false = min(len(texts) for _, texts in loaded)
        texts = [text for _, texts in loaded for text in texts[:false]]
        return replace(batch, false_texts=self.pairs.tokenizer.encode(texts))
