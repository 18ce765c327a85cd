"""What a dataset is to the rest of Diptych: images, words about them, and where each came from.

A source is random access and cheap to open: it reads its index, never its pictures. Pictures are decoded one at a
time by `image`, which raises `BadSample` for a file that cannot be used; everything wrong with the *schema* (a missing
column, a missing file, a path outside the folder) is raised when the source is opened, as `DataError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from PIL import Image as Pillow


class DataError(Exception):
    """The dataset as a whole cannot be used; the message says file, row, key and what to do."""


class NoSplit(DataError):
    """The dataset has nothing of a split, or nothing there that the work can use."""


class WorkerDied(DataError):
    """A process that loads data is gone, by no fault of the data."""


class BadSample(Exception):
    """One sample cannot be used (truncated, too large, empty caption): it is skipped, counted and listed."""

    def __init__(self, where: str, why: str):
        super().__init__(f"{where}: {why}")
        self.where, self.why = where, why

    def __reduce__(self):  # exceptions with two arguments do not survive pickling between workers by themselves
        return BadSample, (self.where, self.why)


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be used."""

    id: int
    where: str
    why: str


@runtime_checkable
class Captioned(Protocol):
    """Images with captions, one split of them."""

    name: str
    split: str

    def __len__(self) -> int:
        """How many images."""
        ...

    def image(self, index: int) -> Pillow.Image:
        """The decoded picture, mode RGB, upright (EXIF applied). Raises BadSample."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of image `index`; never empty."""
        ...

    def where(self, index: int) -> str:
        """File and row, for messages and prediction files."""
        ...


@dataclass(frozen=True)
class Question:
    """A question about an image, with what people answered (ten answers in VQA v2, one in the built-in world)."""

    id: int
    image: int  # index into the source's images
    text: str
    answers: tuple[str, ...]  # empty where the split's answers are withheld
    kind: str = ""  # "exist", "count", "color" …, or VQA's answer_type


@runtime_checkable
class Questioned(Protocol):
    """Images with questions, one split of them."""

    name: str
    split: str

    def __len__(self) -> int:
        """How many questions."""
        ...

    def question(self, index: int) -> Question: ...

    def image(self, index: int) -> Pillow.Image:
        """The decoded picture `index` (a `Question.image`), mode RGB. Raises BadSample."""
        ...

    def where(self, index: int) -> str:
        """File and row of question `index`."""
        ...
