"""Transformer blocks, pre-norm and post-norm, with their feed-forward network and residual addition."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diptych.modules.attention import (
    Causal,
    Context,
    CrossAttention,
    KeyValues,
    KVCache,
    SelfAttention,
    SharedContext,
)
from diptych.modules.tokens import Tokens


class FeedForward(nn.Module):
    """Linear, activation, linear (Vaswani et al. 2017, section 3.3); default activation: exact GELU (BERT, ViT)."""

    def __init__(self, dim: int, mlp_dim: int, dropout: float = 0.0, activation: nn.Module | None = None):
        super().__init__()
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)
        self.activation = activation or nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return self.fc2(self.dropout(self.activation(self.fc1(x))))


class QuickGELU(nn.Module):
    """OpenAI CLIP's approximation of GELU: x · sigmoid(1.702 x)."""

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return x * torch.sigmoid(1.702 * x)


def activation_named(name: str) -> nn.Module:
    """A new activation module by its name in `ACTIVATIONS`. Raises ValueError for an unknown name."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}: expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,  # the exact form
    "quick_gelu": QuickGELU,  # OpenAI's
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


class Residual(nn.Module):
    """The residual addition of a block's branch, with LayerScale and stochastic depth.

    Args:
        scale: initial value of a learned factor per channel of the branch (LayerScale: Touvron et al., ICCV 2021,
            section 2); None: no factor.
        drop_path: in training, the probability that a sample skips the branch, which is scaled up in the other samples
            (stochastic depth: Huang et al., ECCV 2016).
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
    """Pre-norm transformer block: self-attention and feed-forward network, each after a LayerNorm (ViT, figure 1)."""

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
        return self._add_feedforward(tokens)

    def forward_from(self, query: Tokens, tokens: Tokens) -> Tokens:
        """The block's output for `query`, some of the `tokens`, only."""
        attended = self.attention.attend_from(query.map(self.norm1), tokens.map(self.norm1))
        return self._add_feedforward(query + attended.map(self.dropout))

    def _add_feedforward(self, tokens: Tokens) -> Tokens:
        return tokens + tokens.map(self.norm2).map(self.feedforward).map(self.dropout)


class PostNormBlock(nn.Module):
    """BERT's post-norm block: LayerNorm after each residual addition (Vaswani et al. 2017, figure 1).

    With `context_dim` it is the block of a decoder or fusion encoder: between self-attention and the feed-forward
    network it cross-attends to a context of that width.
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
        self, tokens: Tokens, context: Context | None = None,
        allowed: Bool[Tensor, "*b n m"] | Causal | None = None, cache: KVCache | None = None,
    ) -> Tokens:  # fmt: skip
        """Without a `context`, cross-attention is skipped (as in BLIP's unimodal text encoder).

        Raises ValueError for a context if the block has no cross-attention.
        """
        return self.after_self_attention(self.self_attend(tokens, allowed, cache), context)

    def project_context(self, context: Tokens) -> KeyValues:
        """The keys and values of a context in cross-attention. Raises ValueError if the block has none."""
        return self._cross_attention()[0].project(context)

    def self_attend(
        self, tokens: Tokens, allowed: Bool[Tensor, "*b n m"] | Causal | None = None, cache: KVCache | None = None
    ) -> Tokens:
        """The first part of the block: the tokens after self-attention and its LayerNorm."""
        return self._add_self_attention(tokens, self.attention(tokens, allowed, None, cache))

    def self_attend_from(self, query: Tokens, tokens: Tokens) -> Tokens:
        """As `self_attend`, for some of the `tokens` only: no query is computed for the others."""
        return self._add_self_attention(query, self.attention.attend_from(query, tokens))

    def forward_from(self, query: Tokens, tokens: Tokens) -> Tokens:
        """The block's output for `query`, some of the `tokens`, only; without a context."""
        return self.after_self_attention(self.self_attend_from(query, tokens))

    def _add_self_attention(self, tokens: Tokens, attended: Tokens) -> Tokens:
        return (tokens + attended.map(self.dropout)).map(self.norm1)

    def after_self_attention(self, tokens: Tokens, context: Context | None = None) -> Tokens:
        """The rest of the block: cross-attention if there is a `context`, and the feed-forward network."""
        if context is not None:
            cross, cross_norm = self._cross_attention()
            tokens = (tokens + cross(tokens, context).map(self.dropout)).map(cross_norm)
        return (tokens + tokens.map(self.feedforward).map(self.dropout)).map(self.norm2)

    def _cross_attention(self) -> tuple[CrossAttention, nn.LayerNorm]:
        if self.cross is None or self.cross_norm is None:
            raise ValueError("this block has no cross-attention: build it with context_dim, or call it without context")
        return self.cross, self.cross_norm


def project_once(block: PostNormBlock, context: Context | None) -> None:
    """Projects the keys and values of a `SharedContext` in a block's cross-attention, if no earlier call has done it.

    To be called before the block, not in it: activation checkpointing runs a block's `forward` again in the backward
    pass, when these keys and values exist already.
    """
    if isinstance(context, SharedContext) and block.cross is not None:
        context.project(block.cross, block.project_context)


class PreNormContextBlock(nn.Module):
    """Pre-norm block of cross-attention and a feed-forward network, without self-attention.

    The context has the tokens' width and is normalised too. Source: CoCa's multimodal decoder in open_clip.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, eps: float, activation: nn.Module | None = None):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.context_norm = nn.LayerNorm(dim, eps)
        self.attention = CrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.feedforward = FeedForward(dim, mlp_dim, activation=activation)

    def forward(self, tokens: Tokens, context: Context) -> Tokens:
        tokens = tokens + self.attention(tokens.map(self.norm1), context.map(self.context_norm))
        return tokens + tokens.map(self.norm2).map(self.feedforward)
