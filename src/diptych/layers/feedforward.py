"""The position-wise network of a transformer block."""

from __future__ import annotations

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
    """Papers' activations by name: "gelu" is the exact one, "quick_gelu" OpenAI's. Raises ValueError."""
    kinds = {"gelu": nn.GELU, "quick_gelu": QuickGELU}
    if name not in kinds:
        raise ValueError(f"no activation {name!r}; there are {', '.join(kinds)}")
    return kinds[name]()
