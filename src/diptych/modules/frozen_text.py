"""From what frozen networks say to one's own width.

From another encoder's word states to vectors of one's own width, in the place of a table of word vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import dropout as drop

from diptych.batch import Text
from diptych.modules.tokens import Span, Tokens


@runtime_checkable
class HiddenStates(Protocol):
    """A batch of texts (b, n) to a state for each piece (b, n, features)."""

    def __call__(self, text: Text, once: bool = False, /) -> Tensor:
        """`once`: whether these texts do not come again, and need not be remembered."""
        ...


class InputDropout(nn.Linear):
    """A linear layer that reads what is given, and of it, while training, drops a share: what does not learn is soon learned by
    heart, and dropping it holds that back better than dropping what is made of it (LOG.md, "what a block of attention costs").
    """

    def __init__(self, feature_dim: int, dim: int, dropout: float):
        super().__init__(feature_dim, dim)
        self.dropout = dropout

    @classmethod
    def like(cls, old: nn.Linear, dropout: float) -> InputDropout:
        """With another layer's weights."""
        with torch.device("meta"):
            made = cls(old.in_features, old.out_features, dropout)
        made.weight, made.bias = old.weight, old.bias
        return made

    def forward(self, input: Float[Tensor, "*n f"]) -> Float[Tensor, "*n d"]:
        return super().forward(drop(input, self.dropout, self.training))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dropout={self.dropout}"


class FrozenTextEncoder(nn.Module):
    """What another encoder says of each piece, projected linearly and normalised: it can stand where a model embeds its
    words (layers.embed.TextEmbedding), as a CNN's grid can where it embeds patches (layers.grid.GridEmbedding).

    `source` that is no Module is frozen and not saved; its states are `features` wide and know their places. `dropout`: the
    share of them that is dropped while training. A model that guesses the next word (`decode`) must be given a source that
    does not read ahead.
    """

    def __init__(
        self, dim: int, source: HiddenStates, feature_dim: int = 384, eps: float = 1e-12, dropout: float = 0.0
    ):
        super().__init__()
        self.source = source
        self.project = InputDropout(feature_dim, dim, dropout)
        self.norm = nn.LayerNorm(dim, eps)

    def forward(self, text: Text) -> Tokens:
        states = self.source(text).to(self.project.weight)
        spans = (Span("text", "cls", 1), Span("text", "words", text.ids.shape[1] - 1))
        return Tokens.from_padded(states, text.mask, *spans).map(self.project).map(self.norm)


class FrozenTextEmbedding(nn.Module):
    """What another encoder says of each piece, projected linearly: it can stand where a model looks up its words
    (``model.text.word = GivenWords(512, source)``) and adds what else it knows of them, as GivenText can where it embeds.

    `source` that is no Module is frozen and not saved; its states are `features` wide. `dropout`: the share of them that is
    dropped while training. `pad`: the id of padding, which is not read. A model that guesses the next word must be given a
    source that does not read ahead. One that reads what stands before a piece must be told of it where a model with a cache
    is given the newest pieces alone: `behind`.
    """

    def __init__(self, dim: int, source: HiddenStates, feature_dim: int = 384, pad: int = 0, dropout: float = 0.0):
        super().__init__()
        self.source, self.pad = source, pad
        self.project = InputDropout(feature_dim, dim, dropout)
        self._before: Tensor | None = None

    @contextmanager
    def with_prefix(self, before: Int[Tensor, "b m"]) -> Iterator[None]:
        """Within it, what is read stands behind these pieces, in a text that is still being written."""
        self._before = before
        try:
            yield
        finally:
            self._before = None

    def forward(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        if self._before is None:
            states = self.source(Text(ids, ids != self.pad))
        else:
            whole = torch.cat([self._before, ids], 1)
            states = self.source(Text(whole, whole != self.pad), True)[:, self._before.shape[1] :]
        return self.project(states.to(self.project.weight))
