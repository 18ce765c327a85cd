"""The built-in world as a dataset: `Scenes` are captioned images, `SceneQuestions` the questions about them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from PIL import Image as Pillow

from diptych.data.sources.base import DataError, Question
from diptych.data.synthetic import language
from diptych.data.synthetic.render import render
from diptych.data.synthetic.world import SPLITS, Scene, draw

_KEPT = (
    8192  # scenes; with its picture each takes some 30 KB, and drawing one takes longer than a training step's share
)
LARGEST = 200_000
"""Scenes of a split: all captions are read before a run begins, which takes a minute for so many."""
_scene = lru_cache(_KEPT)(draw)


@lru_cache(_KEPT)
def _picture(*key: Any) -> Pillow.Image:
    return render(_scene(*key))


@lru_cache(_KEPT)
def _captions(*key: Any) -> tuple[str, ...]:
    return tuple(caption.text for caption in language.captions(_scene(*key)))


@lru_cache(_KEPT)
def _questions(*key: Any) -> tuple[language.Sentence, ...]:
    return language.questions(_scene(*key))


class Scenes:
    """`size` scenes of a split ("train", "val", "test"; "novel" holds color-kind pairs never seen in the others).

    Nothing is stored: sample `index` is drawn anew from (seed, split, index) whenever it is asked for.
    `pixels` is the side of a square of the pictures' area. Raises DataError for an unknown split or unusable size.
    """

    name = "scenes"

    def __init__(self, split: str, size: int | None = None, seed: int = 0, pixels: int = 96):
        if split not in SPLITS:
            raise DataError(f"scenes: no split {split!r}; choose one of {', '.join(SPLITS)}")
        if size is not None and not 1 <= size <= LARGEST:
            raise DataError(f"scenes: size {size} is not a number of images from 1 to {LARGEST:,}; give such a one")
        if seed < 0:
            raise DataError(f"scenes: seed {seed} is negative; give 0 or more")
        if not 64 <= pixels <= 2048:
            raise DataError(f"scenes: pixels {pixels} is out of range; give 64 to 2048")
        self.split, self.size, self.seed, self.pixels = split, size or SPLITS[split], seed, pixels

    @classmethod
    def from_spec(cls, spec: str, split: str, seed: int = 0) -> Scenes:
        """The world that ``--data`` names: "scenes", or "scenes:2000" for 2,000 training images. Raises DataError."""
        size = size_named(spec)
        return cls(split, size if split == "train" else None, seed)

    def __len__(self) -> int:
        return self.size

    def scene(self, index: int) -> Scene:
        """The graph behind image `index`, with the objects' boxes."""
        return _scene(*self.key(index))

    def key(self, index: int) -> tuple[int, str, int, int]:
        """What a scene is drawn from. Raises IndexError."""
        if not 0 <= index < self.size:
            raise IndexError(f"{self.where(index)}: there are {self.size} scenes")
        return self.seed, self.split, index, self.pixels

    def image(self, index: int) -> Pillow.Image:
        return _picture(*self.key(index)).copy()

    def captions(self, index: int) -> tuple[str, ...]:
        return _captions(*self.key(index))

    def where(self, index: int) -> str:
        return f"scenes/{self.split} (seed {self.seed}) image {index}"


def size_named(spec: str) -> int | None:
    """How many training images "scenes:2000" names; None of "scenes". Raises DataError unless it is a number that there can be."""
    _, colon, size = spec.partition(":")
    if not colon:
        return None
    if not (size.isascii() and size.isdecimal()):
        raise DataError(f"--data {spec}: {size!r} is not a number of images; write scenes:2000")
    if len(size) > 18 or not 1 <= int(size) <= LARGEST:
        raise DataError(f"--data {spec}: the size {size} is not from 1 to {LARGEST:,}; write scenes:2000")
    return int(size)


class SceneQuestions:
    """The questions about scenes: five of each, so question `i` is about image `i // 5`."""

    def __init__(self, scenes: Scenes):
        self.scenes, self.name, self.split = scenes, scenes.name, scenes.split

    def __len__(self) -> int:
        return language.QUESTIONS * len(self.scenes)

    def question(self, index: int) -> Question:
        image, place = divmod(index, language.QUESTIONS)
        asked = _questions(*self.scenes.key(image))[place]
        return Question(id=index, image=image, text=asked.text, answers=(asked.answer,), kind=asked.kind)

    def image(self, index: int) -> Pillow.Image:
        return self.scenes.image(index)

    def where(self, index: int) -> str:
        return f"scenes/{self.split} (seed {self.scenes.seed}) question {index}"
