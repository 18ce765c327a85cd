"""Blindfolds: what can be scored without the pictures, or without the words, is what a model must beat."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image as Pillow

from diptych.data.source import Captioned, Question, Questioned
from diptych.keyed import permutation

GREY = (127, 127, 127)


class DealtCaptions:
    """The control: every image with the captions of another, dealt by `seed`. Whatever is learned of images and their
    words must then score as chance does.
    """

    def __init__(self, source: Captioned, seed: int = 0):
        self.source = source
        self.name, self.split = f"{source.name} (captions dealt to other images)", source.split
        ring = permutation(seed, 0, len(source), "control").tolist()
        self.owner = dict(zip(ring, ring[1:] + ring[:1], strict=True))  # one cycle: none keeps its own

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> Pillow.Image:
        return self.source.image(index)

    def captions(self, index: int) -> tuple[str, ...]:
        return self.source.captions(self.owner[index])

    def where(self, index: int) -> str:
        return f"{self.source.where(index)} with the captions of {self.source.where(self.owner[index])}"


class BlindQuestions:
    """A question source whose pictures are grey (`blind` "image") or whose questions say nothing ("text")."""

    def __init__(self, source: Questioned, blind: str):
        if blind not in ("image", "text"):
            raise ValueError(f"blind is 'image' or 'text', not {blind!r}")
        self.source, self.blind = source, blind
        self.name, self.split = f"{source.name} (blind {blind})", source.split

    def __len__(self) -> int:
        return len(self.source)

    def question(self, index: int) -> Question:
        question = self.source.question(index)
        return replace(question, text="?") if self.blind == "text" else question

    def image(self, index: int) -> Pillow.Image:
        picture = self.source.image(index)
        return Pillow.new("RGB", picture.size, GREY) if self.blind == "image" else picture

    def where(self, index: int) -> str:
        return self.source.where(index)
