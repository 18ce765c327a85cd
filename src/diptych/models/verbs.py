"""The verbs of the field: what a vision-language model can be asked to do. One small Protocol each.

A model has the verbs its paper has: ViT only encodes and classifies, ViLT encodes and fuses.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from diptych.inputs import Image, Text
from diptych.tokens import Pair, Tokens


@runtime_checkable
class EncodesImage(Protocol):
    """A model that reads images: every one here."""

    def encode_image(self, image: Image) -> Tokens:
        """Image tokens, before they have met any text."""
        ...


@runtime_checkable
class EncodesText(Protocol):
    """A model that reads texts."""

    def encode_text(self, text: Text) -> Tokens:
        """Text tokens, before they have met any image."""
        ...


@runtime_checkable
class Fuses(EncodesImage, EncodesText, Protocol):
    """A model in which text and image meet."""

    def fuse(self, text: Tokens, image: Tokens, slot: int = 0) -> Pair:
        """Both, after they have met. `slot` says which of a sample's images this is."""
        ...


@runtime_checkable
class Classifies(EncodesImage, Protocol):
    """A model that names what is in a picture."""

    def classify(self, image: Image) -> Float[Tensor, "b classes"]:
        """A logit per class of picture."""
        ...
