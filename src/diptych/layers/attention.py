"""Multi-head attention over Tokens, in either layout. Beside tokens.py the only file that knows how tokens lie."""

from __future__ import annotations

from itertools import groupby

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.tokens import Layout, Tokens


def attend(
    query: Float[Tensor, "*q d"], key: Float[Tensor, "*k d"], value: Float[Tensor, "*k d"],
    heads: int, asking: Layout, asked: Layout,
) -> Float[Tensor, "*q d"]:  # fmt: skip
    """Scaled dot-product attention of `asking` tokens to `asked` ones; padding is never attended to.

    Query, key and value are the values of Tokens, padded ``(b, n, d)`` or packed ``(t, d)``.
    """
    if query.dim() == 3:
        return _attend_padded(query, key, value, heads, asked)
    if query.is_cuda:
        return _attend_jagged(query, key, value, heads, asking, asked)
    return _attend_runs(query, key, value, heads, asking, asked)


def _attend_padded(query: Tensor, key: Tensor, value: Tensor, heads: int, asked: Layout) -> Tensor:
    """The reference: one call, the padding among the keys masked out."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    mask = None if asked.full else asked.real[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _attend_jagged(q: Tensor, k: Tensor, v: Tensor, heads: int, asking: Layout, asked: Layout) -> Tensor:
    """One call over sequences of different lengths: torch's jagged layout, which a GPU has fast kernels for."""

    def jagged(x: Tensor, layout: Layout) -> Tensor:
        x = x.unflatten(-1, (heads, -1))
        longest = max(layout.lengths)
        return torch.nested.nested_tensor_from_jagged(x, layout.offsets, min_seqlen=1, max_seqlen=longest).transpose(1, 2)

    out = F.scaled_dot_product_attention(jagged(q, asking), jagged(k, asked), jagged(v, asked))
    return out.transpose(1, 2).values().flatten(-2)


def _attend_runs(q: Tensor, k: Tensor, v: Tensor, heads: int, asking: Layout, asked: Layout) -> Tensor:
    """On a CPU: neighbours of equal length share a call, and none is padded. `split`, since slices' backward writes zeros."""
    runs = [(pair, len(list(group))) for pair, group in groupby(zip(asking.lengths, asked.lengths, strict=True))]
    asking_rows = [n * count for (n, _), count in runs]
    asked_rows = [m * count for (_, m), count in runs]
    out = []
    for (_, count), a, b, c in zip(runs, q.split(asking_rows), k.split(asked_rows), v.split(asked_rows), strict=True):
        a, b, c = (x.view(count, -1, heads, x.shape[-1] // heads).transpose(1, 2) for x in (a, b, c))
        out.append(F.scaled_dot_product_attention(a, b, c).transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat(out)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection of query, key and value (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tokens) -> Tokens:
        query, key, value = self.qkv(tokens.values).chunk(3, -1)
        context = attend(query, key, value, self.heads, tokens.layout, tokens.layout)
        return Tokens(self.out(context), tokens.layout)
