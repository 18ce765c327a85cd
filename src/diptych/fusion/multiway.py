"""The multiway transformer: every layer belongs to one modality, only attention's softmax is shared (BEiT-3, figure 2)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from diptych.fusion.experts import Experts
from diptych.layers.attention import attend
from diptych.layers.cache import Cache
from diptych.layers.residual import Residual
from diptych.layout import Layout
from diptych.tokens import Pair, Tokens


class MultiwayBlock(nn.Module):
    """A pre-norm block with a norm more in each branch, before its last projection (Magneto's sub-LayerNorm, Wang et al.
    2022, figure 2), all of it once per modality. `drop`: see Residual.
    """

    def __init__(self, width: int, heads: int, hidden: int, eps: float = 1e-5, dropout: float = 0.0, drop: float = 0.0):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.heads = heads
        self.norm1 = norms(width, eps)
        self.qkv = Experts(nn.Linear(width, 3 * width), nn.Linear(width, 3 * width))
        self.inner_norm = norms(width, eps)
        self.out = Experts(nn.Linear(width, width), nn.Linear(width, width))
        self.norm2 = norms(width, eps)
        self.feedforward = Experts(_feedforward(width, hidden, eps), _feedforward(width, hidden, eps))
        self.dropout = nn.Dropout(dropout)
        self.add = Residual(width, None, drop)

    def forward(self, tokens: Tokens, allowed: Bool[Tensor, "n m"] | None = None, cache: Cache | None = None) -> Tokens:
        query, key, value = self.qkv(self.norm1(tokens)).values.chunk(3, -1)
        asked = tokens.layout
        if cache is not None:
            key, value, asked = cache.extended(self, key, value, asked)
        context = Tokens(attend(query, key, value, self.heads, tokens.layout, asked, allowed), tokens.layout)
        tokens = self.add(tokens, self.out(self.inner_norm(context)).map(self.dropout))
        return self.add(tokens, self.feedforward(self.norm2(tokens)).map(self.dropout))


def norms(width: int, eps: float) -> Experts:
    """A norm for each modality."""
    return Experts(nn.LayerNorm(width, eps), nn.LayerNorm(width, eps))


def _feedforward(width: int, hidden: int, eps: float) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            grow=nn.Linear(width, hidden),
            gelu=nn.GELU(),
            norm=nn.LayerNorm(hidden, eps),
            shrink=nn.Linear(hidden, width),
        )
    )


class Multiway(nn.Module):
    """Image tokens, then text tokens, through the same multiway blocks; `pooler` reads both sides. `norm` None: no final
    norm.
    """

    def __init__(self, blocks: nn.ModuleList, norm: Experts | None, pooler: nn.Module):
        super().__init__()
        self.blocks, self.norm, self.pooler = blocks, norm, pooler

    def alone(self, tokens: Tokens) -> Tokens:
        """One modality through its own half."""
        return self.read(tokens)

    def forward(self, text: Tokens, image: Tokens) -> Pair:
        return self._meet(text, image, None)

    def onward(self, text: Tokens, image: Tokens) -> Pair:
        """As `forward`, but no text token sees a later one, and the image sees no text."""
        return self._meet(text, image, onward(text.layout, image.layout))

    def _meet(self, text: Tokens, image: Tokens, allowed: Bool[Tensor, "n n"] | None) -> Pair:
        image, text = self.read(Tokens.join(image, text), allowed).split(image.layout, text.layout)
        return Pair(text, image, self.pooler(text, image))

    def read(self, tokens: Tokens, allowed: Bool[Tensor, "n m"] | None = None, cache: Cache | None = None) -> Tokens:
        """Tokens of any modalities through the blocks and the final norm."""
        for block in self.blocks:
            tokens = block(tokens, allowed, cache)
        return tokens if self.norm is None else self.norm(tokens)


def onward(text: Layout, image: Layout) -> Bool[Tensor, "n n"]:
    """Which column of image, then text, sees which: the image itself, each word the image and what came before it."""
    n, m = image.real.shape[1], text.real.shape[1]
    allowed = torch.ones(n + m, n + m, dtype=torch.bool, device=text.real.device).tril()
    allowed[:n, :n] = True
    return allowed
