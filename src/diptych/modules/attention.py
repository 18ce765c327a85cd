"""What a decoder remembers between two tokens.

Multi-head attention over Tokens, in either layout. Beside tokens.py the only file that knows how tokens lie.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diptych.modules.tokens import Layout, Tokens


class KVCache:
    """Keys and values of every self-attention that has read so far, so that each token is computed once.

    Works on padded tokens: decoding proceeds in columns. A column that is padding stays so for ever.
    """

    def __init__(self) -> None:
        self._seen: dict[nn.Module, tuple[Tensor, Tensor, Layout]] = {}

    @property
    def length(self) -> int:
        """Columns of text read so far."""
        for _, _, layout in self._seen.values():
            return sum(span.length for span in layout.spans if span.modality == "text")
        return 0

    def extended(
        self, attention: nn.Module, key: Float[Tensor, "*k d"], value: Float[Tensor, "*k d"], layout: Layout
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b m d"], Layout]:
        """What `attention` has seen with the newest behind it, which it will remember."""
        if key.dim() != 3:
            raise ValueError("a cache works on padded tokens: decode outside `packing`")
        if attention in self._seen:
            keys, values, before = self._seen[attention]
            key, value = torch.cat([keys, key], 1), torch.cat([values, value], 1)
            layout = Layout(torch.cat([before.mask, layout.mask], 1), before.spans + layout.spans)
        self._seen[attention] = key, value, layout
        return self._seen[attention]

    def keep_columns(self, columns: int) -> None:
        """Unsees the last columns, which must be of one span: a [MASK] that only held a place."""
        for attention, (key, value, layout) in self._seen.items():
            *before, last = layout.spans
            spans = (*before, replace(last, length=last.length - columns))
            self._seen[attention] = key[:, :-columns], value[:, :-columns], Layout(layout.mask[:, :-columns], spans)

    def index_samples(self, samples: Int[Tensor, " k"]) -> None:
        """Goes on with these samples, in this order: beams that were kept, some perhaps twice."""
        self._seen = {
            attention: (key[samples], value[samples], Layout(layout.mask[samples], layout.spans))
            for attention, (key, value, layout) in self._seen.items()
        }


@dataclass(frozen=True)
class Causal:
    """In place of a mask: each column sees itself and those before it.

    `padding`: whether padding sees padding (BERT's kind does not). It lies behind what is real, which never sees it.
    """

    padding: bool = True


def scaled_dot_product_attention(
    query: Float[Tensor, "*q d"], key: Float[Tensor, "*k d"], value: Float[Tensor, "*k d"],
    num_heads: int, asking: Layout, asked: Layout,
    allowed: Bool[Tensor, "*b n m"] | Causal | None = None, bias: Float[Tensor, "h n m"] | None = None,
) -> Float[Tensor, "*q d"]:  # fmt: skip
    """Scaled dot-product attention of `asking` tokens to `asked` ones; no real token ever attends to padding.

    Query, key and value are the values of Tokens, padded ``(b, n, d)`` or packed ``(t, d)``. `allowed`: which column may
    see which, beside that; None: each sees all. `bias` is added to the scores. No kernel takes another mask
    than `Causal`, or a bias, for packed tokens: they are laid out on their canvas for the call.
    """
    if isinstance(allowed, Causal):
        if bias is None:
            return _attend_causal(query, key, value, num_heads, asking, asked, allowed)
        allowed = causal(asking.mask.shape[1], asked.mask.shape[1], query.device)
    if query.dim() == 3:
        return _attend_padded(query, key, value, num_heads, asked, allowed, bias)
    if allowed is not None or bias is not None:
        warnings.warn("attention with a mask or bias of its own computes pads: no packed kernel has them", stacklevel=2)
        q, (k, v) = Tokens(query, asking).to_padded(), (Tokens(x, asked).to_padded() for x in (key, value))
        context = _attend_padded(q, k, v, num_heads, asked, allowed, bias)
        return Tokens(context, asking).pack().values
    if query.is_cuda:
        return _attend_jagged(query, key, value, num_heads, asking, asked)
    return _attend_grouped(query, key, value, num_heads, asking, asked)


def causal(asking: int, asked: int, device: torch.device | str | None = None) -> Bool[Tensor, "asking asked"]:
    """Each column sees itself and those before it; the asking ones are the last of the asked."""
    return torch.ones(asking, asked, dtype=torch.bool, device=device).tril(asked - asking)


def _attend_causal(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, asking: Layout, asked: Layout, onward: Causal
) -> Tensor:
    if q.dim() == 2 and not q.is_cuda:
        return _attend_grouped(q, k, v, num_heads, asking, asked, onward=True)
    if q.dim() == 2:  # torch's jagged layout has no causal kernel for every precision
        q, (k, v) = Tokens(q, asking).to_padded(), (Tokens(x, asked).to_padded() for x in (k, v))
        return Tokens(_attend_causal(q, k, v, num_heads, asking, asked, onward), asking).pack().values
    mask = causal(q.shape[1], k.shape[1], q.device)
    if not (onward.padding or asked.full):
        mask = mask & asked.mask[:, None, None, :]
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    return _softmax_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def _attend_padded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    asked: Layout,
    allowed: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The reference: one call, the padding among the keys masked out."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    mask = None if asked.full else asked.mask[:, None, None, :]
    if allowed is not None:
        seen = allowed[:, None] if allowed.dim() == 3 else allowed
        mask = seen if mask is None else mask & seen
    if bias is not None:
        bias = bias.to(q.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, torch.finfo(q.dtype).min)
    return _softmax_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def _attend_jagged(q: Tensor, k: Tensor, v: Tensor, num_heads: int, asking: Layout, asked: Layout) -> Tensor:
    """One call over sequences of different lengths: torch's jagged layout, which a GPU has fast kernels for."""

    def jagged(x: Tensor, layout: Layout) -> Tensor:
        x = x.unflatten(-1, (num_heads, -1))
        longest = max(layout.lengths)
        nested = torch.nested.nested_tensor_from_jagged(x, layout.offsets, min_seqlen=1, max_seqlen=longest)
        return nested.transpose(1, 2)

    out = F.scaled_dot_product_attention(jagged(q, asking), jagged(k, asked), jagged(v, asked))
    return out.transpose(1, 2).values().flatten(-2)


def _attend_grouped(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, asking: Layout, asked: Layout, onward: bool = False
) -> Tensor:
    """On a CPU: samples of equal lengths share a call, and none is padded. `split`, since slices' backward writes zeros."""
    asking_rows, asked_rows, groups = asking.groups(asked)
    q = q.index_select(0, asking_rows)
    k, v = k.index_select(0, asked_rows), v.index_select(0, asked_rows)
    queries = q.split([count * n for count, n, _ in groups])
    keys, values = (x.split([count * m for count, _, m in groups]) for x in (k, v))
    out = []
    for (count, n, m), a, b, c in zip(groups, queries, keys, values, strict=True):
        a, b, c = (x.view(count, -1, num_heads, x.shape[-1] // num_heads).transpose(1, 2) for x in (a, b, c))
        mask = causal(n, m, q.device) if onward else None
        out.append(_softmax_attention(a, b, c, mask).transpose(1, 2).flatten(2).flatten(0, 1))
    back = torch.empty_like(asking_rows)
    back[asking_rows] = torch.arange(len(asking_rows), device=back.device)
    return torch.cat(out).index_select(0, back)


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """torch's fused kernel, but on a CPU in bfloat16 the plain formula, which is 2 to 6 times faster there."""
    if q.dtype != torch.bfloat16 or q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection of query, key and value (Vaswani et al. 2017, section 3.2).

    `key_bias` False: only query and value have a bias (BEiT); a key's moves all scores of a query alike.
    """

    def __init__(self, dim: int, num_heads: int, key_bias: bool = True):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} does not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=key_bias)
        self.query_bias = None if key_bias else nn.Parameter(torch.zeros(dim))
        self.value_bias = None if key_bias else nn.Parameter(torch.zeros(dim))
        self.out = nn.Linear(dim, dim)

    def forward(
        self, tokens: Tokens,
        allowed: Bool[Tensor, "*b n m"] | Causal | None = None, bias: Float[Tensor, "h n m"] | None = None,
        cache: KVCache | None = None,
    ) -> Tokens:  # fmt: skip
        """With a `cache`, `tokens` are the newest ones, and see those that it remembers too."""
        query, key, value = self._project(tokens.values).chunk(3, -1)
        asked = tokens.layout
        if cache is not None:
            key, value, asked = cache.extended(self, key, value, asked)
        context = scaled_dot_product_attention(query, key, value, self.num_heads, tokens.layout, asked, allowed, bias)
        return Tokens(self.out(context), tokens.layout)

    def _project(self, values: Tensor) -> Tensor:
        if self.query_bias is None or self.value_bias is None:
            return self.qkv(values)
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        return F.linear(values, self.qkv.weight, bias)


class CrossAttention(nn.Module):
    """Multi-head attention of one sequence to another, which may have another width (Vaswani et al. 2017, section 3.2.3).

    `inner`: the width that all heads have together; `tokens`' own unless told.
    """

    def __init__(self, dim: int, num_heads: int, context_dim: int | None = None, attention_dim: int | None = None):
        super().__init__()
        attention_dim = attention_dim or dim
        if attention_dim % num_heads:
            raise ValueError(f"width {attention_dim} does not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.query = nn.Linear(dim, attention_dim)
        self.key = nn.Linear(context_dim or dim, attention_dim)
        self.value = nn.Linear(context_dim or dim, attention_dim)
        self.out = nn.Linear(attention_dim, dim)

    def forward(self, tokens: Tokens, context: Tokens) -> Tokens:
        query, key, value = self.query(tokens.values), self.key(context.values), self.value(context.values)
        gathered = scaled_dot_product_attention(query, key, value, self.num_heads, tokens.layout, context.layout)
        return Tokens(self.out(gathered), tokens.layout)
