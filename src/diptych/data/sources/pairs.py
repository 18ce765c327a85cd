"""Captioned images passed from Python: any sequence of (image, caption) pairs, such as a list or a torch Dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image as Pillow

from diptych.config.validation import preview
from diptych.data.sources.base import DataError, NoSplit
from diptych.data.sources.photos import Photos, open_photos
from diptych.data.sources.splits import counted, drawn_splits
from diptych.utils.feature_cache import digest

PREFIX = "python:"
"""Begins the name of data that was passed from Python, which no command can open."""


@dataclass
class CaptionedPairs:
    """Captioned images of a sequence of pairs (see `base.Captioned`).

    Args:
        pairs: each an image (see `photos.open_photos`) and its caption or captions.
        images: for each image the pairs that it is in.
        texts: the captions of each pair.
        min_side: see `photos.Photos`.
        division: one line on how the pairs were divided into splits.
    """

    pairs: Sequence[Any]
    images: Sequence[Sequence[int]]
    texts: Sequence[tuple[str, ...]]
    name: str
    split: str
    min_side: int | None = None
    division: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Pillow.Image:
        """The decoded image, mode RGB, upright. Raises BadSample."""
        return self._photo(index).image(0)

    def file(self, index: int) -> bytes:
        """Bytes of the image file; size and pixels of an image in memory. Raises BadSample."""
        return self._photo(index).file(0)

    def stem(self, index: int) -> str:
        """File name without its suffix; the number of its first pair for an image in memory."""
        photo = self._photo(index)
        return photo.stem(0) if photo.path(0) else str(self.images[index][0])

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(text for pair in self.images[index] for text in self.texts[pair])

    def where(self, index: int) -> str:
        """The number of the image's first pair."""
        return f"pairs[{self.images[index][0]}]"

    def _photo(self, index: int) -> Photos:
        pair = self.images[index][0]
        return _photo(self.pairs[pair][0], f"pairs[{pair}]", self.min_side)


@dataclass(frozen=True)
class PairTable:
    """A sequence of pairs with their captions, which are read once. `read_pairs` makes one.

    Args:
        pairs: each an image (see `photos.open_photos`) and its caption or captions.
        texts: the captions of each pair.
        places: the pairs of each image, by its path as first given, or by its number, after "\\0", if it has none.
    """

    pairs: Sequence[Any]
    texts: Sequence[tuple[str, ...]]
    places: dict[str, list[int]]

    @property
    def name(self) -> str:
        """The name in run.json, by which a resumed run is compared: the number of pairs, a digest of captions and paths.

        The pixels of images in memory are not compared.
        """
        content = repr((list(self.texts), list(self.places.items())))
        return f"{PREFIX}{len(self.texts)} pairs, digest {digest(content).hex()[:8]}"

    def split(self, split: str, seed: int = 0, min_side: int | None = None) -> CaptionedPairs:
        """The images of one split; they are divided 90/5/5, keyed by `seed` and the image's path or number.

        Raises NoSplit: no image is in this split.
        """
        splits = drawn_splits(list(self.places), list(self.places), seed)
        division = f"{len(self.places)} images divided by image, seed {seed}: {counted(splits)}"
        chosen = [indices for indices, own in zip(self.places.values(), splits, strict=True) if own == split]
        if not chosen:
            raise NoSplit(f"no pairs in split {split!r} ({division}); pass more pairs, or a table with a split column")
        return CaptionedPairs(self.pairs, chosen, self.texts, "pairs", split, min_side, division)


def read_pairs(pairs: Sequence[Any]) -> PairTable:
    """The captions of a sequence of pairs; those with the same path are captions of one image.

    The images of a Dataset are not kept, but read again when they are used.

    Raises DataError: an item is no pair of one image and its captions.
    """
    texts: list[tuple[str, ...]] = []
    places: dict[str, list[int]] = {}
    keys: dict[str, str] = {}  # of absolute paths
    for i in range(len(pairs)):
        image, captions = _checked(pairs[i], f"pairs[{i}]")
        texts.append(captions)
        key = f"\0{i}"  # no path
        if isinstance(image, str | os.PathLike):
            key = keys.setdefault(os.path.abspath(image), os.path.normpath(image))
        places.setdefault(key, []).append(i)
    if not texts:
        raise DataError("no pairs: expected a sequence of (image, caption), got an empty one")
    return PairTable(pairs, texts, places)


def _checked(pair: Any, where: str) -> tuple[Any, tuple[str, ...]]:
    """The image of a pair, and its captions. Raises DataError."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        got = f"{len(pair)} items" if isinstance(pair, tuple | list) else type(pair).__name__
        raise DataError(f"{where}: expected (image, caption) or (image, [captions]), got {got}")
    image, captions = pair
    captions = (captions,) if isinstance(captions, str) else captions
    if not isinstance(captions, tuple | list) or not captions or not all(isinstance(text, str) for text in captions):
        raise DataError(f"{where}: expected a caption or a list of captions, got {preview(captions)}")
    _photo(image, where)
    return image, tuple(captions)


def _photo(image: Any, where: str, min_side: int | None = None) -> Photos:
    """One image that is not read yet. Raises DataError."""
    try:
        photos = open_photos(image, min_side)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if len(photos) != 1:
        raise DataError(f"{where}: expected one image, got {len(photos)} from {preview(image)}: pass its file")
    return photos
