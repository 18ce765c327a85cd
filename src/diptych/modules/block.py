"""The position-wise network of a transformer block.

What a block does with a branch before it adds it back.

The transformer block, in the two orders in which papers normalise.

A block that looks at another sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diptych.modules.attention import Causal, CrossAttention, KVCache, SelfAttention
from diptych.modules.tokens import Tokens


class FeedForward(nn.Module):
    """Linear, activation, linear (Vaswani et al. 2017, section 3.3); exact GELU unless told, as in BERT and ViT."""

    def __init__(self, dim: int, mlp_dim: int, dropout: float = 0.0, activation: nn.Module | None = None):
        super().__init__()
        self.grow = nn.Linear(dim, mlp_dim)
        self.shrink = nn.Linear(mlp_dim, dim)
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


class Residual(nn.Module):
    """A branch of a block, added back to the tokens that it read.

    `scale`: each channel of the branch has a learned factor, which begins there (LayerScale: Touvron et al., ICCV 2021,
    section 2); None: no factor. `drop`: while training, the share of samples that go without the branch; it is scaled up
    in the others (stochastic depth: Huang et al., ECCV 2016).
    """

    def __init__(self, dim: int, scale: float | None = None, drop_path: float = 0.0):
        super().__init__()
        self.scale = None if scale is None else nn.Parameter(torch.full((dim,), scale))
        self.drop_path = drop_path

    def forward(self, tokens: Tokens, branch: Tokens) -> Tokens:
        if self.scale is not None:
            branch = branch.map(self.scale.mul)
        if self.training and self.drop_path:
            keep = torch.rand(len(tokens), device=branch.values.device) >= self.drop_path
            branch = branch.scale(keep.to(branch.values.dtype) / (1 - self.drop_path))
        return tokens + branch


class PreNormBlock(nn.Module):
    """Self-attention and a feed-forward network, each on normalised tokens and added back (ViT, figure 1)."""

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, eps: float = 1e-6, dropout: float = 0.0,
        activation: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attention = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.feedforward = FeedForward(dim, mlp_dim, dropout, activation)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Tokens,
        allowed: Bool[Tensor, "*b n m"] | Causal | None = None, bias: Float[Tensor, "h n m"] | None = None,
        cache: KVCache | None = None,
    ) -> Tokens:  # fmt: skip
        attended = self.attention(tokens.map(self.norm1), allowed, bias, cache)
        tokens = tokens + attended.map(self.dropout)
        return tokens + tokens.map(self.norm2).map(self.feedforward).map(self.dropout)


class PostNormBlock(nn.Module):
    """BERT's block: each part is added to what it read, and the sum normalised (Vaswani et al. 2017, figure 1).

    With `context_width` it is a decoder's or a fusion encoder's: between the two it attends to a context of that width.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, eps: float = 1e-12, dropout: float = 0.0,
        context_dim: int | None = None, activation: nn.Module | None = None,
    ):  # fmt: skip
        super().__init__()
        self.attention = SelfAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim, eps)
        self.cross = None if context_dim is None else CrossAttention(dim, num_heads, context_dim)
        self.cross_norm = None if context_dim is None else nn.LayerNorm(dim, eps)
        self.feedforward = FeedForward(dim, mlp_dim, activation=activation)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Tokens, context: Tokens | None = None,
        allowed: Bool[Tensor, "*b n m"] | Causal | None = None, cache: KVCache | None = None,
    ) -> Tokens:  # fmt: skip
        """Without a `context`, attention to one is left out (BLIP's text encoder reads text alone so)."""
        tokens = (tokens + self.attention(tokens, allowed, None, cache).map(self.dropout)).map(self.norm1)
        if context is not None:
            if self.cross is None or self.cross_norm is None:
                raise ValueError("this block was built without attention to a context (context_width)")
            tokens = (tokens + self.cross(tokens, context).map(self.dropout)).map(self.cross_norm)
        return (tokens + tokens.map(self.feedforward).map(self.dropout)).map(self.norm2)


class PreNormContextBlock(nn.Module):
    """Attention to a context and a feed-forward network, each on normalised tokens and added back; the context, which has
    the tokens' width, is normalised too (CoCa's multimodal decoder, as open_clip builds it).
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, eps: float, activation: nn.Module | None = None):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.context_norm = nn.LayerNorm(dim, eps)
        self.attention = CrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.feedforward = FeedForward(dim, mlp_dim, activation=activation)

    def forward(self, tokens: Tokens, context: Tokens) -> Tokens:
        tokens = tokens + self.attention(tokens.map(self.norm1), context.map(self.context_norm))
        return tokens + tokens.map(self.norm2).map(self.feedforward)
