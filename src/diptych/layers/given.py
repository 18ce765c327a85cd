"""From another encoder's word states to tokens of one's own width."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from diptych.inputs import Text
from diptych.layout import Span
from diptych.tokens import Tokens


@runtime_checkable
class States(Protocol):
    """A batch of texts (b, n) to a state for each piece (b, n, features)."""

    def __call__(self, text: Text, once: bool = False, /) -> Tensor:
        """`once`: whether these texts do not come again, and need not be remembered."""
        ...


class GivenText(nn.Module):
    """What another encoder says of each piece, projected linearly and normalised: it can stand where a model embeds its
    words (layers.embed.TextEmbedding), as a CNN's grid can where it embeds patches (layers.grid.GridEmbedding).

    `source` that is no Module is frozen and not saved; its states are `features` wide and know their places. A model that
    guesses the next word (`decode`) must be given a source that does not read ahead.
    """

    def __init__(self, width: int, source: States, features: int = 384, eps: float = 1e-12, dropout: float = 0.0):
        super().__init__()
        self.source = source
        self.project = nn.Linear(features, width)
        self.norm = nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Text) -> Tokens:
        states = self.source(text).to(self.project.weight)
        spans = (Span("text", "cls", 1), Span("text", "words", text.ids.shape[1] - 1))
        return Tokens.of(states, text.real, *spans).map(self.project).map(self.norm).map(self.dropout)
