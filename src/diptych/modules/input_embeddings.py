"""Input embeddings passed to a model's constructor instead of its own. Imports no torch, as configs name them too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Grid = tuple[int, int]
"""Rows and columns of a model's position grid."""


@dataclass(frozen=True)
class InputEmbeddings:
    """Factories of a model's input embeddings, each called with the width of the model's tokens; None: the model's own.

    A decoder with a text embedding of its own keeps it: bidirectional features would leak future tokens.

    Attributes:
        image: image embedding, from the width and the model's position grid (None if it has no such grid).
        text: text embedding, instead of the sum of word, position and segment embeddings (TextEmbedding).
        word: word embeddings, instead of an nn.Embedding; the model adds its positions. Not called if `text` is used.
        feature_dropout: input dropout on region features, in a model's own projection of them.

    `init_transformer` and `scale_init` leave what a factory returns as it is: it may contain pre-trained weights, or
    have an initialisation of its own.
    """

    image: Callable[[int, Grid | None], nn.Module] | None = None
    text: Callable[[int], nn.Module] | None = None
    word: Callable[[int], nn.Module] | None = None
    feature_dropout: float = 0.0

    def build_image(self, dim: int, grid: Grid | None = None) -> Any:
        """The image embedding, or None for the model's own."""
        return None if self.image is None else _keep_init(self.image(dim, grid))

    def build_text(self, dim: int) -> Any:
        """The text embedding, or None for the model's own."""
        return None if self.text is None else _keep_init(self.text(dim))

    def build_word(self, dim: int) -> Any:
        """The word embeddings, or None for the model's own."""
        return None if self.word is None else _keep_init(self.word(dim))


OWN = InputEmbeddings()
"""The model's own embeddings of images and texts."""


def keeps_init(module: nn.Module) -> bool:
    """Whether the module is part of an embedding that a factory built, which keeps its initial weights."""
    return getattr(module, "keeps_init", False)


def _keep_init(embedding: nn.Module) -> nn.Module:
    for part in embedding.modules():
        part.keeps_init = True  # type: ignore[assignment]
    return embedding
