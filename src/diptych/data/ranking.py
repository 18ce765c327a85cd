"""Training examples for ranking losses: an image and its caption, with negative texts and negative images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int

from diptych.batch import Batch
from diptych.config.data import ImageSettings
from diptych.data.examples import MAX_TEXT_CHARS, LoadedPair, PairExamples, readable
from diptych.data.images.loading import ImageLoader
from diptych.data.sources.base import BadSample, Captioned, DataError, NoSplit
from diptych.data.sources.copies import first_copies_of
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.utils.rng import uniform

T = TypeVar("T")
Valid = Callable[[Iterable[int]], Iterator[T]]
"""A function from indices to the items of those that are valid."""

TRIES = 4  # draws per negative text, because one may fall on the image itself
IMAGE_TRIES = 8  # draws per negative image, because one may be unreadable or have the same caption


@dataclass(frozen=True)
class HardNegatives:
    """Negatives among the nearest images of each image (ViLBERT).

    Args:
        nearest: the indices of the nearest images of each image, -1 where there are fewer (see `nearest_images`).
        texts: captions of nearest images per pair.
        images: nearest images per pair.
    """

    nearest: Int[np.ndarray, "images k"]
    texts: int = 0
    images: int = 0


@dataclass(frozen=True)
class RankedPair:
    """A loaded pair with its negative texts, and negative images as the loader gives them."""

    pair: LoadedPair
    negative_texts: list[str]
    negative_images: list[Any]


class RankedExamples:
    """Pairs with negatives: `num_texts` texts and `num_images` images drawn uniformly, then the hard ones.

    All draws are keyed by (seed, step, id). A negative text is a caption of another image that differs, ignoring case
    and white space, from all captions of this one (ViLT, section 4.2). A negative image is another image without the
    pair's caption. Images with equal bytes count as one (data/sources/copies.py). If too few negatives of a kind are
    drawn, those drawn are repeated; if none is, the first valid one after the first draw is used. A sample without any
    valid negative is a bad sample.

    Args:
        hard: negatives among the nearest images; where an image has no valid one, they are drawn uniformly.

    Raises:
        DataError: no negatives at all.
        NoSplit: no sample has a valid negative.
    """

    def __init__(
        self,
        source: Captioned,
        tokenizer: Tokenizer,
        images: ImageSettings | ImageLoader,
        num_texts: int = 15,
        num_images: int = 0,
        hard: HardNegatives | None = None,
    ):
        hard = hard or HardNegatives(np.empty((len(source), 0), dtype=np.int64))
        if num_texts + num_images + hard.texts + hard.images < 1:
            raise DataError("no negatives: at least one of negative_texts and the other negatives must be above 0")
        self.picture = np.array(first_copies_of(source, len(source)))  # distinct image of each image index
        self.source, self.num_texts, self.num_images, self.hard = source, num_texts, num_images, hard
        image_ids = dict.fromkeys(self.picture.tolist())
        if all(self._own_texts(image_id) == self._own_texts(0) for image_id in image_ids):
            raise NoSplit(
                f"{source.name} ({source.split}): no negative text for any image: ranking needs at least two "
                "images with different captions"
            )
        self.pairs = PairExamples(source, tokenizer, images, matching=0.0)

    def __len__(self) -> int:
        return len(self.pairs)

    def length(self, index: int) -> int:
        return self.pairs.length(index)

    def load(self, index: int, seed: int, step: int) -> RankedPair:
        pair, image = self.pairs.load(index, seed, step), int(self.pairs.owner[index])
        texts, images = partial(self._valid_texts, index), partial(self._valid_images, index, seed, step)
        nearest = self.hard.nearest[image][self.hard.nearest[image] >= 0].tolist()
        captions = [example for near in nearest for example in self.pairs.examples_of(near)]
        all_captions, all_images = range(len(self.pairs)), range(len(self.source))

        def draw(stream: str, num: int, tries: int, valid: Valid[T], *pools: Sequence[int]) -> list[T]:
            draws = uniform(seed, step, [index], stream, tries * num)[0].tolist() if num else []
            negatives = (_some(pool, draws, valid, num) for pool in pools if pool and num)
            return next(filter(None, negatives), [])

        negative_texts = draw("false texts", self.num_texts, TRIES, texts, all_captions)
        negative_texts += draw("hard texts", self.hard.texts, TRIES, texts, captions, all_captions)
        negative_images = draw("negative images", self.num_images, IMAGE_TRIES, images, all_images)
        negative_images += draw("hard images", self.hard.images, IMAGE_TRIES, images, nearest, all_images)
        if len(negative_texts) < self.num_texts + self.hard.texts:
            raise BadSample(self.source.where(image), "no negative text: every caption of the data is one of its own")
        if len(negative_images) < self.num_images + self.hard.images:
            raise BadSample(
                self.source.where(image), "no negative image: no other image without this caption can be read"
            )
        return RankedPair(pair, negative_texts, negative_images)

    def _valid_texts(self, index: int, examples: Iterable[int]) -> Iterator[str]:
        """Captions of those of the `examples` that are negative texts of example `index`."""
        image_ids = self.picture[self.pairs.owner]  # distinct image of each example
        own = self._own_texts(int(image_ids[index]))
        others = (self.pairs.caption(i) for i in examples if image_ids[i] != image_ids[index])
        return (text for text in others if readable(text) and _comparable(text) not in own)

    def _valid_images(self, index: int, seed: int, step: int, images: Iterable[int]) -> Iterator[Any]:
        """The loaded images of those of `images` that are negative images of example `index`."""
        own, caption = int(self.picture[self.pairs.owner[index]]), _comparable(self.pairs.caption(index))
        for image in images:
            other = int(self.picture[image])
            if other != own and caption not in self._own_texts(other):
                with suppress(BadSample):  # reported when it is drawn as a sample itself
                    yield self.pairs.load_image(image, index, seed, step)

    def _own_texts(self, image_id: int) -> set[str]:
        """Captions of a distinct image under all its file names, normalised for comparison."""
        images = np.flatnonzero(self.picture == image_id).tolist()
        return {_comparable(text) for image in images for text in self.source.captions(image) if readable(text)}

    def collate(self, loaded: list[RankedPair], ids: Sequence[int], seed: int, step: int) -> Batch:
        batch = self.pairs.collate([one.pair for one in loaded], ids, seed, step)
        texts = [text for one in loaded for text in one.negative_texts]
        images = [image for one in loaded for image in one.negative_images]
        return replace(
            batch,
            negative_texts=self.pairs.tokenizer.encode(texts) if texts else None,
            negative_images=self.pairs.loader.stack(images) if images else None,
        )


def _some(pool: Sequence[int], draws: Sequence[float], valid: Valid[T], num: int) -> list[T]:
    """`num` valid items of a pool: those drawn, repeated if they are fewer; if none is valid, the first after the first
    draw.

    Args:
        draws: uniform in [0, 1).
        valid: from indices to the items of those that are valid.
    """
    drawn = [int(draw * len(pool)) for draw in draws]
    items = list(islice(valid(pool[i] for i in drawn), num))
    if not items:
        items = list(islice(valid(pool[(drawn[0] + i) % len(pool)] for i in range(len(pool))), 1))
    return list(islice(cycle(items), num))


def _comparable(text: str) -> str:
    """The text in lower case with single spaces, so that trivially different captions compare equal."""
    return " ".join(text[:MAX_TEXT_CHARS].lower().split())
