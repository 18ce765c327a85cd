"""Scene graphs of the built-in world: objects, attributes and positions, from which images and texts are generated.

A scene is a pure function of (seed, split, index). Its objects differ in (color, kind), so a phrase can identify each.
So that counts cannot be guessed from the question, each scene has a *topic* (a kind or a color) and 0 to 5 objects of
it with equal probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TypeVar

import numpy as np

from diptych.data.synthetic.shapes import KINDS, proportions
from diptych.utils.rng import generator

T = TypeVar("T")

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black")
MATERIALS = ("plain", "shiny", "striped", "spotted")
SIZES = ("small", "medium", "large")
GROUNDS = ("grass", "sand", "sky", "stone", "wood")
RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
SPLITS = {"train": 20_000, "val": 1_000, "test": 1_000, "novel": 1_000}
MAX_THINGS = 5  # objects in a scene

_COMBINATIONS = tuple(product(COLORS, KINDS))
# One color of every kind, and one or two kinds of every color, occur only in the split "novel".
HELD_OUT = frozenset((c, k) for c, k in _COMBINATIONS if (COLORS.index(c) + 3 * KINDS.index(k)) % len(COLORS) == 0)
_TRAINED = tuple(pair for pair in _COMBINATIONS if pair not in HELD_OUT)

_LENGTHS = {
    "small": (16, 20),
    "medium": (26, 31),
    "large": (40, 46),
}  # longer side in pixels, for an image of 96 pixels
_OVERLAP = 0.08  # largest overlap, as a share of the smaller box
_APART = 0.12  # least distance of centers, as a share of the image's side, for "left of" or "above"


@dataclass(frozen=True)
class Thing:
    """An object. `box` is (x1, y1, x2, y2) in pixels, x2 and y2 exclusive; `tilt` in degrees."""

    kind: str
    color: str
    material: str
    size: str
    box: tuple[int, int, int, int]
    tilt: int = 0

    @property
    def center(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2


@dataclass(frozen=True)
class Phrase:
    """A partial description, such as "small red" or "striped fish"; None leaves an attribute open."""

    kind: str | None = None
    color: str | None = None
    material: str | None = None
    size: str | None = None

    def fits(self, thing: Thing) -> bool:
        return all(
            want is None or want == have
            for want, have in (
                (self.kind, thing.kind),
                (self.color, thing.color),
                (self.material, thing.material),
                (self.size, thing.size),
            )
        )


@dataclass(frozen=True)
class Scene:
    """Scene graph; later objects cover earlier ones where they overlap."""

    width: int
    height: int
    ground: str
    things: tuple[Thing, ...]
    topic: Phrase
    key: tuple[int, str, int] = field(repr=False)  # (seed, split, index), which keys further draws about this scene

    def generator(self, use: str) -> np.random.Generator:
        """Random generator for one use of the scene: pixels, captions, questions."""
        seed, split, index = self.key
        return generator(seed, 0, index, f"scenes {split} {use}")

    def count(self, phrase: Phrase) -> int:
        return sum(phrase.fits(thing) for thing in self.things)

    def holds(self, a: int, relation: str, b: int) -> bool:
        """Whether object `a` is clearly left of / right of / above / below object `b`, by their centers."""
        (ax, ay), (bx, by) = self.things[a].center, self.things[b].center
        x, y = (bx - ax) / self.width, (by - ay) / self.height
        return {"left": x, "right": -x, "above": y, "below": -y}[relation] > _APART

    def relations(self) -> list[tuple[int, str, int]]:
        """All (object, relation, object) that are true of the scene."""
        n = len(self.things)
        return [
            (a, relation, b)
            for a in range(n)
            for b in range(n)
            for relation in RELATIONS
            if a != b and self.holds(a, relation, b)
        ]


def draw(seed: int, split: str, index: int, pixels: int) -> Scene:
    """Scene `index` of a split; the image's area is about `pixels` squared, its sides vary by a fifth."""
    rng = generator(seed, 0, index, f"scenes {split} graph")
    stretch = float(np.exp(rng.uniform(-0.18, 0.18)))
    width, height = round(pixels * stretch), round(pixels / stretch)
    topic = Phrase(kind=pick(rng, KINDS)) if rng.random() < 0.6 else Phrase(color=pick(rng, COLORS))
    names = _names(rng, topic, novel=split == "novel")
    things: list[Thing] = []
    sizes = sorted((int(rng.integers(3)) for _ in names), reverse=True)  # large objects first, while there is room
    for (color, kind), size in zip(names, sizes, strict=True):
        tilt = int(rng.integers(-4, 5)) * 4
        size, box = _place(rng, kind, tilt, size, (width, height), pixels / 96, [thing.box for thing in things])
        things.append(Thing(kind, color, pick(rng, MATERIALS), SIZES[size], box, tilt))
    return Scene(width, height, pick(rng, GROUNDS), tuple(things), topic, (seed, split, index))


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, uniformly."""
    return options[int(rng.integers(len(options)))]


def _names(rng: np.random.Generator, topic: Phrase, novel: bool) -> list[tuple[str, str]]:
    """(color, kind) of each object: all different, a drawn number of them of the topic, one held out if `novel`."""
    of_topic = int(rng.integers(MAX_THINGS + 1))
    n = max(1, of_topic + int(rng.integers(1 + min(3, MAX_THINGS - of_topic))))
    names: list[tuple[str, str]] = []
    for place in range(n):
        pool = (tuple(sorted(HELD_OUT)) if place == 0 else _COMBINATIONS) if novel else _TRAINED
        inside = place < of_topic
        fitting = [(c, k) for c, k in pool if (topic.kind == k or topic.color == c) == inside and (c, k) not in names]
        names.append(pick(rng, fitting))
    rng.shuffle(names)
    return names


def _place(rng, kind: str, tilt: int, size: int, frame: tuple[int, int], scale: float, taken: list):
    """Size and box of an object that (nearly) avoids the boxes `taken`; without room the object becomes smaller."""
    wide, tall = proportions(kind, tilt)
    best = (np.inf, size, (0, 0, 1, 1))
    for attempt in range(20 * (size + 1) + 40):
        now = max(0, size - attempt // 20)
        length = rng.uniform(*_LENGTHS[SIZES[now]]) * scale
        w, h = max(2, round(length * wide)), max(2, round(length * tall))
        x, y = int(rng.integers(1, frame[0] - w)), int(rng.integers(1, frame[1] - h))
        box = (x, y, x + w, y + h)
        overlap = max((_overlap(box, other) for other in taken), default=0.0)
        best = min(best, (overlap, now, box))
        if overlap <= _OVERLAP:
            break
    return best[1], best[2]


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection area as a share of the smaller box."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0, w) * max(0, h) / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
