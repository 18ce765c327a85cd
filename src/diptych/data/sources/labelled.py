"""Image classification data: a reader of CIFAR-100 and its training examples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image as Pillow

from diptych.batch import Batch
from diptych.config.data import ImageSettings
from diptych.config.validation import preview
from diptych.data.images.loading import ImageLoader, image_loader, with_images
from diptych.data.sources.base import DataError, NoSplit
from diptych.data.sources.splits import counted, requested_split
from diptych.utils.feature_cache import digest
from diptych.utils.rng import generator
from diptych.utils.safe_pickle import NotPlain, read_plain

SIDE = 32
HELD_OUT = 10  # every tenth image of train is val
FILES = {"train": "train", "val": "train", "test": "test"}


class Labelled:
    """One split of CIFAR-100 (Krizhevsky 2009): images of 32 x 32 pixels, each of one of `classes`.

    `folder` contains ``meta``, ``train`` and ``test``, pickles that are parsed without running them
    (utils/safe_pickle.py). Differs: the data set has no val split, so every tenth image of train is held out as one,
    together with all its copies (the first of them counts); `division` describes it in one line. Raises DataError, and
    NoSplit for an empty split.
    """

    def __init__(self, folder: Path, split: str):
        split = requested_split(split, str(folder))
        self.name, self.split, self.path = folder.name, split, folder / FILES[split]
        self.classes = [_text(name, folder / "meta") for name in _read(folder / "meta", b"fine_label_names", list)]
        pixels = _read(self.path, b"data", np.ndarray)
        labels = _read(self.path, b"fine_labels", list)
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * SIDE * SIDE):
            raise DataError(
                f"{self.path}: expected uint8 pixels of shape ({len(labels)}, {3 * SIDE * SIDE}), got {pixels.dtype} "
                f"{pixels.shape}"
            )
        wrong = [x for x in labels if type(x) is not int or not 0 <= x < len(self.classes)]
        if wrong:
            raise DataError(f"{self.path}: label {preview(wrong[0])} is none of the {len(self.classes)} classes")
        splits = ["test"] * len(labels) if split == "test" else _held_out(pixels)
        self.rows = [row for row, own in enumerate(splits) if own == split]
        how = "" if split == "test" else f", every {HELD_OUT}th image of it as val"
        self.division = f"{folder.name}: file {FILES[split]}{how}: {counted(splits)}"
        if not self.rows:
            raise NoSplit(f"{self.path}: no image in split {split!r} ({self.division}); name another split")
        self.pixels = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Pillow.Image:
        return Pillow.fromarray(np.ascontiguousarray(self.pixels[self.rows[index]]))

    def label(self, index: int) -> int:
        return self.labels[self.rows[index]]

    def where(self, index: int) -> str:
        return f"{self.path}, row {self.rows[index]}"


def _held_out(pixels: np.ndarray) -> list[str]:
    """Split of each row of train: val for every tenth image and its copies, by the first row with the same pixels."""
    first: dict[bytes, int] = {}
    places = [first.setdefault(digest(row.tobytes()), i) for i, row in enumerate(pixels)]
    return ["val" if place % HELD_OUT == HELD_OUT - 1 else "train" for place in places]


@runtime_checkable
class LabelledImages(Protocol):
    """One split of images with one class each."""

    name: str
    split: str

    def __len__(self) -> int: ...

    def image(self, index: int) -> Pillow.Image: ...

    def label(self, index: int) -> int: ...

    def where(self, index: int) -> str: ...


class LabelledExamples:
    """One example per image. Labels: ``class`` int64 ``(b,)``.

    With `mirrored` (in training) images are flipped horizontally with probability 0.5, drawn by (seed, step, id).
    """

    def __init__(self, source: LabelledImages, images: ImageSettings | ImageLoader, mirrored: bool = False):
        self.source, self.loader, self.mirrored = source, image_loader(images), mirrored

    def __len__(self) -> int:
        return len(self.source)

    def length(self, index: int) -> int:
        return 1

    def load(self, index: int, seed: int, step: int) -> tuple[Any, int]:
        image = self.loader.load(self.source, index, partial(generator, seed, step, index, "augment"))
        if self.mirrored and generator(seed, step, index, "mirror").random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
        return image, self.source.label(index)

    def collate(self, loaded: list[tuple[Any, int]], ids: Sequence[int], seed: int, step: int) -> Batch:
        labels = {"class": torch.tensor([label for _, label in loaded])}
        batch = Batch(seed, step, torch.tensor(ids), labels=labels)
        return with_images(batch, self.loader.stack([image for image, _ in loaded]))


def _read(path: Path, key: bytes, kind: type) -> Any:
    """One entry of a pickle. Raises DataError."""
    try:
        record = read_plain(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); name a folder with CIFAR-100's meta, train and test"
        ) from None
    except NotPlain as error:
        raise DataError(f"{path}: not a pickle of plain values: {error}") from None
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        raise DataError(f"{path}: no {key.decode()} in it; name a folder of CIFAR-100")
    return value


def _text(name: Any, path: Path) -> str:
    if not isinstance(name, bytes | str):
        raise DataError(f"{path}: expected class names as text, got {type(name).__name__}")
    return name.decode(errors="replace") if isinstance(name, bytes) else name
