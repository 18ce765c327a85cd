"""Interfaces of data sources (captioned images, questions about images, phrases with boxes) and their errors.

A source gives random access and is cheap to open: it reads its index, never its images. Images are decoded one at a
time by `image`, which raises `BadSample` for a file that cannot be used. Errors of the *schema* (a missing column, a
missing file, a path outside the folder) are raised as `DataError` when the source is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from PIL import Image as Pillow


class DataError(Exception):
    """The data set as a whole cannot be used; the message names file, row and key, and what to do."""


class NoSplit(DataError):
    """The data set has no usable sample in a split."""


class WorkerDied(DataError):
    """A data-loading process was killed; the data is not at fault."""


class BadSample(Exception):
    """One sample cannot be used (truncated, too large, empty caption): it is skipped, counted and listed."""

    def __init__(self, where: str, why: str):
        super().__init__(f"{where}: {why}")
        self.where, self.why = where, why

    def __reduce__(self):  # pickles an exception with two arguments, which workers send back
        return BadSample, (self.where, self.why)


@dataclass(frozen=True)
class Skipped:
    """A sample or image that could not be used: its index, its name (a path, or a place in a list), and why."""

    id: int
    where: str
    why: str


def first_skipped(samples: Iterable[tuple[str, str]], number: int = 5) -> str:
    """The first different (where, why) pairs of skipped samples, as text: captions of one image have the same."""
    return "; ".join(f"{where}: {why}" for where, why in list(dict.fromkeys(samples))[:number])


@runtime_checkable
class Captioned(Protocol):
    """One split of captioned images."""

    name: str
    split: str

    def __len__(self) -> int:
        """Number of images."""
        ...

    def image(self, index: int) -> Pillow.Image:
        """The decoded image, mode RGB, upright (EXIF applied). Raises BadSample."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """Captions of image `index`; at least one."""
        ...

    def where(self, index: int) -> str:
        """File and row, for messages and prediction files."""
        ...


@dataclass(frozen=True)
class Question:
    """A question about an image with its annotators' answers (ten in VQA v2, one in the built-in world)."""

    id: int
    image: int  # index into the source's images
    text: str
    answers: tuple[str, ...]  # empty if the split's answers are withheld
    kind: str = ""  # "exist", "count", "color" …, or VQA's answer_type


@runtime_checkable
class Questioned(Protocol):
    """One split of questions about images."""

    name: str
    split: str

    def __len__(self) -> int:
        """Number of questions."""
        ...

    def question(self, index: int) -> Question: ...

    def image(self, index: int) -> Pillow.Image:
        """The decoded image `index` (a `Question.image`), mode RGB. Raises BadSample."""
        ...

    def where(self, index: int) -> str:
        """File and row of question `index`."""
        ...


Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the upright image, x2 and y2 exclusive."""


@dataclass(frozen=True)
class Expression:
    """A referring expression: a phrase and the box of what it refers to in an image."""

    id: int
    image: int  # index into the source's images
    phrase: str
    box: Box
    kinds: tuple[str, ...] = ()  # of what it refers to: "people", "animals" …; metrics are computed for each


@runtime_checkable
class Grounded(Protocol):
    """One split of referring expressions."""

    name: str
    split: str

    def __len__(self) -> int:
        """Number of expressions."""
        ...

    def expression(self, index: int) -> Expression: ...

    def objects(self, image: int) -> Sequence[Box]:
        """The boxes of all annotated objects of an image (an `Expression.image`)."""
        ...

    def size(self, image: int) -> tuple[int, int]:
        """Width and height in pixels of an upright image, of which boxes are; nothing is decoded. Raises BadSample."""
        ...

    def image(self, index: int) -> Pillow.Image:
        """The decoded image `index` (an `Expression.image`), mode RGB. Raises BadSample."""
        ...

    def where(self, index: int) -> str:
        """File and row of expression `index`."""
        ...
