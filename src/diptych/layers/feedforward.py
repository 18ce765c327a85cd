"""The position-wise network of a transformer block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FeedForward(nn.Module):
    """Linear, activation, linear (Vaswani et al. 2017, section 3.3); exact GELU unless told, as in BERT and ViT."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0, activation: nn.Module | None = None):
        super().__init__()
        self.grow = nn.Linear(width, hidden)
        self.shrink = nn.Linear(hidden, width)
        self.activation = activation or nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return self.shrink(self.dropout(self.activation(self.grow(x))))


class QuickGELU(nn.Module):
    """OpenAI CLIP's approximation of GELU: x · sigmoid(1.702 x)."""

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return x * torch.sigmoid(1.702 * x)


def activation_named(name: str) -> nn.Module:
    """The activation of that name (`ACTIVATIONS`). Raises ValueError."""
    if name not in ACTIVATIONS:
        raise ValueError(f"no activation {name!r}; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,  # the exact form
    "quick_gelu": QuickGELU,  # OpenAI's
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}
