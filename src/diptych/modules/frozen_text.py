"""Frozen text features as model input: hidden states of a frozen text encoder, projected to the model's width."""

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
    """A frozen text encoder: from texts (b, n) to one hidden state per subword token (b, n, features)."""

    def __call__(self, text: Text, transient: bool = False, /) -> Tensor:
        """Hidden states; `transient`: these texts will not recur (partial captions), so their states are not cached."""
        ...


class InputDropout(nn.Linear):
    """A linear layer with input dropout, for frozen features.

    A small model soon overfits features that do not change; dropout before the projection prevents that better than
    dropout after it (docs/decisions/0014-settings-of-the-small-recipes.md).
    """

    def __init__(self, feature_dim: int, dim: int, dropout: float):
        super().__init__(feature_dim, dim)
        self.dropout = dropout

    def forward(self, input: Float[Tensor, "*n f"]) -> Float[Tensor, "*n d"]:
        return super().forward(drop(input, self.dropout, self.training))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dropout={self.dropout}"


class FrozenTextEncoder(nn.Module):
    """Text tokens from a frozen encoder: its hidden states, projected and normalised.

    Replaces a model's text embedding (modules.embeddings.TextEmbedding), as GridEmbedding replaces its
    patch embedding.

    Args:
        source: the frozen encoder; its states contain positions. If it is not a Module, it is not saved.
        feature_dim: width of its states.
        dropout: input dropout on them in training.

    A model that decodes autoregressively needs a causal source: bidirectional features would leak future tokens.
    """

    def __init__(
        self, dim: int, source: HiddenStates, feature_dim: int = 384, eps: float = 1e-12, dropout: float = 0.0
    ):
        super().__init__()
        self.source = source
        self.project = InputDropout(feature_dim, dim, dropout)
        self.norm = nn.LayerNorm(dim, eps)

    def forward(self, text: Text) -> Tokens:
        text.check()
        states = self.source(text).to(self.project.weight)
        spans = (Span("text", "cls", 1), Span("text", "words", text.ids.shape[1] - 1))
        return Tokens.from_padded(states, text.mask, *spans).map(self.project).map(self.norm)


class FrozenTextEmbedding(nn.Module):
    """Word vectors from a frozen encoder: its hidden states, projected. Replaces a model's `nn.Embedding`.

    The model still adds position and segment embeddings; FrozenTextEncoder replaces the whole text embedding.

    Args:
        source: the frozen encoder. If it is not a Module, it is not saved.
        feature_dim: width of its states.
        pad: the id of padding tokens, which are masked.
        dropout: input dropout on the states in training.

    A model that decodes autoregressively needs a causal source: bidirectional features would leak future tokens. With a
    key-value cache, a model is called with the newest tokens only, while a contextual source needs those before them
    too: see `with_prefix`.
    """

    def __init__(self, dim: int, source: HiddenStates, feature_dim: int = 384, pad: int = 0, dropout: float = 0.0):
        super().__init__()
        self.source, self.pad = source, pad
        self.project = InputDropout(feature_dim, dim, dropout)
        self._prefix: Tensor | None = None

    @contextmanager
    def with_prefix(self, prefix: Int[Tensor, "b m"]) -> Iterator[None]:
        """Context in which `forward` takes its ids as the continuation of `prefix`, in a text being generated."""
        self._prefix = prefix
        try:
            yield
        finally:
            self._prefix = None

    def forward(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        if self._prefix is None:
            states = self.source(Text(ids, ids != self.pad))
        else:
            whole = torch.cat([self._prefix, ids], 1)
            states = self.source(Text(whole, whole != self.pad), True)[:, self._prefix.shape[1] :]
        return self.project(states.to(self.project.weight))
