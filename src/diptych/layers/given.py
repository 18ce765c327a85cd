"""From what frozen networks say to one's own width."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout as drop

from diptych.inputs import Text
from diptych.layout import Span
from diptych.tokens import Tokens


@runtime_checkable
class States(Protocol):
    """A batch of texts (b, n) to a state for each piece (b, n, features)."""

    def __call__(self, text: Text, once: bool = False, /) -> Tensor:
        """`once`: whether these texts do not come again, and need not be remembered."""
        ...


class Dropping(nn.Linear):
    """A linear layer that reads what is given, and of it, while training, drops a share: what does not learn is soon learned by
    heart, and dropping it holds that back better than dropping what is made of it (LOG.md, "what a block of attention costs").
    """

    def __init__(self, features: int, width: int, dropout: float):
        super().__init__(features, width)
        self.dropout = dropout

    @classmethod
    def like(cls, old: nn.Linear, dropout: float) -> Dropping:
        """With another layer's weights."""
        with torch.device("meta"):
            made = cls(old.in_features, old.out_features, dropout)
        made.weight, made.bias = old.weight, old.bias
        return made

    def forward(self, input: Float[Tensor, "*n f"]) -> Float[Tensor, "*n d"]:
        return super().forward(drop(input, self.dropout, self.training))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dropout={self.dropout}"


class GivenText(nn.Module):
    """What another encoder says of each piece, projected linearly and normalised: it can stand where a model embeds its
    words (layers.embed.TextEmbedding), as a CNN's grid can where it embeds patches (layers.grid.GridEmbedding).

    `source` that is no Module is frozen and not saved; its states are `features` wide and know their places. `dropout`: the
    share of them that is dropped while training. A model that guesses the next word (`decode`) must be given a source that
    does not read ahead.
    """

    def __init__(self, width: int, source: States, features: int = 384, eps: float = 1e-12, dropout: float = 0.0):
        super().__init__()
        self.source = source
        self.project = Dropping(features, width, dropout)
        self.norm = nn.LayerNorm(width, eps)

    def forward(self, text: Text) -> Tokens:
        states = self.source(text).to(self.project.weight)
        spans = (Span("text", "cls", 1), Span("text", "words", text.ids.shape[1] - 1))
        return Tokens.of(states, text.real, *spans).map(self.project).map(self.norm)
