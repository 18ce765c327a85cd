"""Sources of the built-in world: captioned images (`Scenes`), questions about them (`SceneQuestions`), and referring
expressions (`SceneExpressions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from PIL import Image as Pillow

from diptych.data.sources.base import Box, DataError, Expression, Question
from diptych.data.synthetic import language
from diptych.data.synthetic.render import render
from diptych.data.synthetic.world import SPLITS, Scene, draw

_CACHED = 8192  # scenes of about 30 KB with their images; rendering one takes longer than its share of a training step
MAX_SCENES = 200_000
"""Maximum scenes of a split: all captions are generated before a run starts, about a minute for this many."""
_scene = lru_cache(_CACHED)(draw)


@lru_cache(_CACHED)
def _picture(*key: Any) -> Pillow.Image:
    return render(_scene(*key))


@lru_cache(_CACHED)
def _captions(*key: Any) -> tuple[str, ...]:
    return tuple(caption.text for caption in language.captions(_scene(*key)))


@lru_cache(_CACHED)
def _questions(*key: Any) -> tuple[language.Sentence, ...]:
    return language.questions(_scene(*key))


@lru_cache(_CACHED)
def _expressions(*key: Any) -> tuple[language.Reference, ...]:
    return language.expressions(_scene(*key))


class Scenes:
    """`size` scenes of a split ("train", "val", "test"; "novel" has color-kind pairs that do not occur in the others).

    Nothing is stored: sample `index` is generated from (seed, split, index). `pixels` is the side of a square with the
    images' area. Raises DataError for an unknown split or unusable size.
    """

    name = "scenes"

    def __init__(self, split: str, size: int | None = None, seed: int = 0, pixels: int = 96):
        if split not in SPLITS:
            raise DataError(f"scenes: no split {split!r}; choose one of {', '.join(SPLITS)}")
        if size is not None and not 1 <= size <= MAX_SCENES:
            raise DataError(f"scenes: size must be in [1, {MAX_SCENES:,}]: got {size}")
        if seed < 0:
            raise DataError(f"scenes: seed must be at least 0: got {seed}")
        if not 64 <= pixels <= 2048:
            raise DataError(f"scenes: pixels must be in [64, 2048]: got {pixels}")
        self.split, self.size, self.seed, self.pixels = split, size or SPLITS[split], seed, pixels

    @classmethod
    def from_spec(cls, spec: str, split: str, seed: int = 0) -> Scenes:
        """Scenes for a ``--data`` value: "scenes", or "scenes:2000" for 2,000 training images. Raises DataError."""
        size = size_named(spec)
        return cls(split, size if split == "train" else None, seed)

    def __len__(self) -> int:
        return self.size

    def scene(self, index: int) -> Scene:
        """Scene graph of image `index`, with the objects' boxes."""
        return _scene(*self.key(index))

    def key(self, index: int) -> tuple[int, str, int, int]:
        """Arguments from which a scene is generated. Raises IndexError."""
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
    """Number of training images in "scenes:2000"; None for "scenes". Raises DataError for an invalid number."""
    _, colon, size = spec.partition(":")
    if not colon:
        return None
    if not (size.isascii() and size.isdecimal()):
        raise DataError(f"--data {spec}: {size!r} is not a number of images; write scenes:2000")
    if len(size) > 18 or not 1 <= int(size) <= MAX_SCENES:
        raise DataError(f"--data {spec}: size must be in [1, {MAX_SCENES:,}], got {size}; write scenes:2000")
    return int(size)


class SceneQuestions:
    """Questions about scenes, five per scene: question `i` is about image `i // 5`."""

    def __init__(self, scenes: Scenes):
        self.scenes, self.name, self.split = scenes, scenes.name, scenes.split

    def __len__(self) -> int:
        return language.QUESTIONS * len(self.scenes)

    def question(self, index: int) -> Question:
        image, place = divmod(index, language.QUESTIONS)
        question = _questions(*self.scenes.key(image))[place]
        return Question(id=index, image=image, text=question.text, answers=(question.answer,), kind=question.kind)

    def image(self, index: int) -> Pillow.Image:
        return self.scenes.image(index)

    def where(self, index: int) -> str:
        return f"scenes/{self.split} (seed {self.scenes.seed}) question {index}"


class SceneExpressions:
    """Referring expressions of objects in scenes, four per scene: expression `i` is of image `i // 4`."""

    def __init__(self, scenes: Scenes):
        self.scenes, self.name, self.split = scenes, scenes.name, scenes.split

    def __len__(self) -> int:
        return language.EXPRESSIONS * len(self.scenes)

    def expression(self, index: int) -> Expression:
        image, place = divmod(index, language.EXPRESSIONS)
        reference = _expressions(*self.scenes.key(image))[place]
        return Expression(index, image, reference.text, self.objects(image)[reference.thing], (reference.kind,))

    def objects(self, image: int) -> Sequence[Box]:
        return [thing.box for thing in self.scenes.scene(image).things]

    def size(self, image: int) -> tuple[int, int]:
        scene = self.scenes.scene(image)
        return scene.width, scene.height

    def image(self, index: int) -> Pillow.Image:
        return self.scenes.image(index)

    def where(self, index: int) -> str:
        return f"scenes/{self.split} (seed {self.scenes.seed}) expression {index}"
