"""Multi-head attention over Tokens, padded or packed, with keys and values that are computed once.

These are of the tokens decoded so far (`KVCache`), or of a context that several samples attend to (`SharedContext`).
With modules/packed_attention.py and modules/tokens.py the only file that depends on the memory layout of tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diptych.modules.packed_attention import attend_grouped, attend_jagged
from diptych.modules.tokens import Layout, Span, Tokens, check_same_samples


class KVCache:
    """Keys and values of every self-attention layer for the tokens decoded so far, so that each is computed once.

    For padded tokens only: decoding proceeds in columns. A padding column stays padding.
    """

    def __init__(self) -> None:
        self._entries: dict[nn.Module, tuple[Tensor, Tensor, Layout]] = {}

    @property
    def length(self) -> int:
        """Number of text columns in the cache."""
        for _, _, layout in self._entries.values():
            return sum(span.length for span in layout.spans if span.modality == "text")
        return 0

    @property
    def columns(self) -> int:
        """Number of all columns in the cache: text, and an image if it was encoded with the text (BEiT-3)."""
        for key, _, _ in self._entries.values():
            return key.shape[1]
        return 0

    def update(
        self, attention: nn.Module, key: Float[Tensor, "*k d"], value: Float[Tensor, "*k d"], layout: Layout
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b m d"], Layout]:
        """Appends the keys and values of new tokens; returns all keys and values of `attention`, and their layout.

        Raises ValueError for packed tokens.
        """
        if key.dim() != 3:
            raise ValueError("the key-value cache needs padded tokens, got packed ones: decode outside `packing`")
        if attention in self._entries:
            keys, values, before = self._entries[attention]
            key, value = torch.cat([keys, key], 1), torch.cat([values, value], 1)
            layout = Layout(torch.cat([before.mask, layout.mask], 1), before.spans + layout.spans)
        self._entries[attention] = key, value, layout
        return self._entries[attention]

    def drop_columns(self, columns: int) -> None:
        """Drops the last `columns` columns, which must be of one span (a [MASK] at the position to predict)."""
        for attention, (key, value, layout) in self._entries.items():
            *before, last = layout.spans
            spans = (*before, replace(last, length=last.length - columns))
            self._entries[attention] = key[:, :-columns], value[:, :-columns], Layout(layout.mask[:, :-columns], spans)

    def index_samples(self, samples: Int[Tensor, " k"]) -> None:
        """Selects and reorders samples: the beams that survive a step; one may occur several times."""
        self._entries = {
            attention: (key[samples], value[samples], Layout(layout.mask[samples], layout.spans))
            for attention, (key, value, layout) in self._entries.items()
        }


class KeyValues(NamedTuple):
    """The keys and values of contexts in one cross-attention layer, and the contexts' layout.

    Of padded contexts they are split into heads, each contiguous, so that no later call copies them.
    """

    key: Float[Tensor, "b h m e"] | Float[Tensor, "t d"]
    value: Float[Tensor, "b h m e"] | Float[Tensor, "t d"]
    layout: Layout

    def pack(self) -> tuple[Float[Tensor, "t d"], Float[Tensor, "t d"]]:
        """Keys and values in the packed layout."""
        if self.key.dim() == 2:
            return self.key, self.value
        key, value = (Tokens(x.transpose(1, 2).flatten(2), self.layout).pack().values for x in (self.key, self.value))
        return key, value


class SharedContext:
    """Contexts of cross-attention, each shared by several samples: an image by its beams, or by texts to score.

    Keys and values are projected once per context and layer, and kept for later calls: when a layer first needs them,
    or before, by `project`. A layer must always attend to the same view of a context (`select`, `map`).

    Args:
        tokens: the contexts.
        owner: the index of each sample's context. If it ascends, no query is copied to share keys and values.
    """

    def __init__(self, tokens: Tokens, owner: Int[Tensor, " samples"]):
        self.tokens, self.owner = tokens, owner
        self._counts: list[int] = owner.bincount(minlength=len(tokens)).tolist()  # samples of each context
        self._order = owner.argsort(stable=True) if (owner.diff() < 0).any() else None  # samples, by context
        self._views: tuple[Callable[[Tokens], Tokens], ...] = ()  # applied before projection, in this order
        self._projected: dict[nn.Module, KeyValues] = {}
        # of padded and of packed queries, by their layout: the same for all layers, which then group samples once
        self._folds: WeakKeyDictionary[Layout, dict[int, Layout]] = WeakKeyDictionary()

    @classmethod
    def of(cls, tokens: Tokens) -> SharedContext:
        """One sample for each context."""
        return cls(tokens, torch.arange(len(tokens), device=tokens.mask.device))

    def __len__(self) -> int:
        return len(self.owner)

    def index_samples(self, samples: Int[Tensor, " k"]) -> SharedContext:
        """The contexts of samples selected by index; keys and values stay shared. See `Tokens.index_samples`."""
        selected = SharedContext(self.tokens, self.owner[samples])
        selected._views, selected._projected = self._views, self._projected
        return selected

    def map(self, function: Callable[[Tensor], Tensor]) -> SharedContext:
        """These contexts with `function` applied to every token, before they are projected. See `Tokens.map`."""
        return self._viewed(lambda tokens: tokens.map(function))

    def select(self, modality: str | None = None, name: str | None = None) -> SharedContext:
        """The spans of this `modality` and `name` of these contexts. See `Tokens.select`."""
        return self._viewed(lambda tokens: tokens.select(modality, name))

    def expanded(self) -> Tokens:
        """Each sample's own copy of its context."""
        one_each = self._counts == [1] * len(self.tokens) and self._order is None
        return self._apply_views(self.tokens if one_each else self.tokens.index_samples(self.owner))

    def project(self, attention: nn.Module, projection: Callable[[Tokens], KeyValues]) -> KeyValues:
        """The keys and values of the contexts, not of the samples, in one layer: `projection` of them, computed once.

        In training they must be computed outside the block of the layer: activation checkpointing calls a block twice,
        and each call would have to compute the same.
        """
        if attention not in self._projected:
            self._projected[attention] = projection(self._apply_views(self.tokens))
        return self._projected[attention]

    def fold(self, query: Float[Tensor, "*q d"], layout: Layout) -> tuple[Float[Tensor, "*f d"], Layout]:
        """The queries of all samples of a context as one sequence, so that they share its keys and values.

        In cross-attention a query does not depend on other queries. The result is padded if `query` is, and every
        context has the same number of samples; else each sequence is packed (padding of a padded `query` stays in it).
        """
        if len(layout.mask) != len(self):
            raise ValueError(
                f"expected tokens of {len(self)} samples, as many as share the contexts, got {len(layout.mask)}"
            )
        folds = self._folds.setdefault(layout, {})
        if query.dim() not in folds:
            folds[query.dim()] = self._folded_layout(layout, packed=query.dim() == 2)
        folded = folds[query.dim()]
        if self._order is not None:
            query = _index_samples(query, layout, self._order)[0]
        if query.dim() == 3 and len(set(self._counts)) == 1:
            return query.reshape(*folded.mask.shape, query.shape[-1]), folded
        return query.flatten(0, -2), folded

    def _folded_layout(self, layout: Layout, packed: bool) -> Layout:
        owner, mask = self.owner, layout.mask
        if self._order is not None:
            owner, mask = owner[self._order], mask[self._order]
        if not packed and len(set(self._counts)) == 1:
            folded = mask.reshape(len(self.tokens), self._counts[0] * mask.shape[1])
        else:
            per_sample = mask.sum(1) if packed else torch.full_like(owner, mask.shape[1])
            lengths = owner.new_zeros(len(self.tokens)).index_add(0, owner, per_sample)
            folded = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        return Layout(folded, (Span("text", "words", folded.shape[1]),))

    def unfold(self, folded: Float[Tensor, "*f d"], query: Float[Tensor, "*q d"], layout: Layout) -> Tensor:
        """Inverse of `fold`: `folded` in the shape of `query`, and in its order of samples."""
        unfolded = folded.reshape(*query.shape[:-1], folded.shape[-1])
        if self._order is None:
            return unfolded
        return _index_samples(unfolded, Layout(layout.mask[self._order], layout.spans), self._order.argsort())[0]

    def _viewed(self, view: Callable[[Tokens], Tokens]) -> SharedContext:
        viewed = copy(self)
        viewed._views = (*self._views, view)
        return viewed

    def _apply_views(self, tokens: Tokens) -> Tokens:
        for view in self._views:
            tokens = view(tokens)
        return tokens


def _index_samples(values: Tensor, layout: Layout, samples: Int[Tensor, " k"]) -> tuple[Tensor, Layout]:
    selected = Tokens(values, layout).index_samples(samples)
    return selected.values, selected.layout


Context = Tokens | SharedContext
"""What cross-attention attends to: one context for each sample, or contexts that samples share."""


def expanded(context: Context) -> Tokens:
    """Each sample's own copy of its context."""
    return context.expanded() if isinstance(context, SharedContext) else context


@dataclass(frozen=True)
class Causal:
    """A causal mask, not materialised: each column attends to itself and to those before it.

    `padding`: whether padding columns attend to padding (in BERT they do not). Padding follows the real tokens,
    which therefore never attend to it.
    """

    padding: bool = True


class AttentionMap(NamedTuple):
    """The attention probabilities of one layer, as a node of the graph that its output is computed from."""

    probabilities: Float[Tensor, "b h n m"]
    query: Layout
    key: Layout


class _Retained(NamedTuple):
    chosen: Callable[[Layout, Layout], bool]
    maps: list[AttentionMap]


_retained: ContextVar[_Retained | None] = ContextVar("retained attention", default=None)


@contextmanager
def retain_attention(chosen: Callable[[Layout, Layout], bool]) -> Iterator[list[AttentionMap]]:
    """Context in which some layers compute attention unfused and keep its probabilities; outputs are the same.

    Args:
        chosen: called with the layouts of queries and keys of each attention layer, in the order of computation;
            returns whether its probabilities are kept. They have gradients even if the model's weights have none.

    Yields: the kept probabilities, in the same order; padded, also for packed tokens.
    """
    before = _retained.set(retained := _Retained(chosen, []))
    try:
        yield retained.maps
    finally:
        _retained.reset(before)


def _attend_retained(
    values: Sequence[Tensor], num_heads: int, query_layout: Layout, key_layout: Layout,
    allowed: Tensor | Causal | None, bias: Tensor | None, maps: list[AttentionMap],
) -> Tensor:  # fmt: skip
    """softmax(q kᵀ / √d) v, whose probabilities are added to `maps`; they are 0 at keys that are padding."""
    layouts = query_layout, key_layout, key_layout
    padded = [Tokens(x, layout).to_padded() for x, layout in zip(values, layouts, strict=True)]
    q, k, v = (_split_heads(x, num_heads) for x in padded)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # b h n m
    if bias is not None:
        scores = scores + bias
    mask = key_layout.mask[:, None, None, :]
    if allowed is not None:
        allowed = causal(q.shape[2], k.shape[2], q.device) if isinstance(allowed, Causal) else allowed
        mask = mask & (allowed[:, None] if allowed.dim() == 3 else allowed)
    probabilities = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    if torch.is_grad_enabled() and not probabilities.requires_grad:
        probabilities.requires_grad_()
    maps.append(AttentionMap(probabilities, query_layout, key_layout))
    attended = Tokens((probabilities.to(v.dtype) @ v).transpose(1, 2).flatten(2), query_layout)
    return attended.pack().values if values[0].dim() == 2 else attended.values


def scaled_dot_product_attention(
    query: Float[Tensor, "*q d"], key: Float[Tensor, "*k d"], value: Float[Tensor, "*k d"],
    num_heads: int, query_layout: Layout, key_layout: Layout,
    allowed: Bool[Tensor, "*b n m"] | Causal | None = None, bias: Float[Tensor, "h n m"] | None = None,
) -> Float[Tensor, "*q d"]:  # fmt: skip
    """Scaled dot-product attention; no real token attends to padding.

    Args:
        query, key, value: values of Tokens, padded ``(b, n, d)`` or packed ``(t, d)``.
        query_layout, key_layout: their layouts.
        allowed: which query column may attend to which key column, in addition to the padding mask; None: all.
        bias: added to the attention scores.

    Raises ValueError for layouts of different numbers of samples.

    On a GPU no kernel takes a mask or a bias for packed tokens: they are padded for the call.
    """
    check_same_samples(query_layout, key_layout)
    if (retained := _retained.get()) is not None and retained.chosen(query_layout, key_layout):
        values = query, key, value
        return _attend_retained(values, num_heads, query_layout, key_layout, allowed, bias, retained.maps)
    if _in_groups(query):
        return _attend_grouped((query, key, value), num_heads, query_layout, key_layout, allowed, bias)
    if isinstance(allowed, Causal):
        if bias is None:
            return _attend_causal(query, key, value, num_heads, query_layout, key_layout, allowed)
        allowed = causal(query_layout.mask.shape[1], key_layout.mask.shape[1], query.device)
    if query.dim() == 3:
        return _attend_padded(query, key, value, num_heads, key_layout, allowed, bias)
    if allowed is not None or bias is not None:
        warnings.warn("attention with a mask or a bias has no packed kernel: computing padded tokens", stacklevel=2)
        q, (k, v) = Tokens(query, query_layout).to_padded(), (Tokens(x, key_layout).to_padded() for x in (key, value))
        context = _attend_padded(q, k, v, num_heads, key_layout, allowed, bias)
        return Tokens(context, query_layout).pack().values
    return attend_jagged(query, key, value, num_heads, query_layout, key_layout)


def _in_groups(values: Tensor) -> bool:
    """Whether attention is computed in groups of samples: for packed values, but on a GPU."""
    return values.dim() == 2 and not values.is_cuda


def _attend_grouped(
    values: Sequence[Tensor], num_heads: int, query_layout: Layout, key_layout: Layout,
    allowed: Tensor | Causal | None, bias: Tensor | None,
) -> Tensor:  # fmt: skip
    """`attend_grouped` with this file's kernel and masks."""
    mask = causal if isinstance(allowed, Causal) else allowed
    return attend_grouped(values, num_heads, query_layout, key_layout, mask, bias, kernel=_softmax_attention)


def causal(queries: int, keys: int, device: torch.device | str | None = None) -> Bool[Tensor, "queries keys"]:
    """The causal mask, True where attention is allowed; the query columns are the last of the key columns."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _attend_causal(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, query_layout: Layout, key_layout: Layout, rule: Causal
) -> Tensor:
    if q.dim() == 2:  # torch's jagged layout lacks a causal kernel for some precisions
        q, (k, v) = Tokens(q, query_layout).to_padded(), (Tokens(x, key_layout).to_padded() for x in (k, v))
        return Tokens(_attend_causal(q, k, v, num_heads, query_layout, key_layout, rule), query_layout).pack().values
    mask = causal(q.shape[1], k.shape[1], q.device)
    if not (rule.padding or key_layout.full):
        mask = mask & key_layout.mask[:, None, None, :]
    q, k, v = (_split_heads(x, num_heads) for x in (q, k, v))
    return _softmax_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def _attend_padded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    key_layout: Layout,
    allowed: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention over padded tokens in one call, with padding keys masked out: the reference implementation."""
    q, k, v = (_split_heads(x, num_heads) for x in (query, key, value))
    mask = None if key_layout.full else key_layout.mask[:, None, None, :]
    if allowed is not None:
        allowed = allowed[:, None] if allowed.dim() == 3 else allowed
        mask = allowed if mask is None else mask & allowed
    if bias is not None:
        bias = bias.to(q.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, torch.finfo(q.dtype).min)
    return _softmax_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def _split_heads(x: Float[Tensor, "b n d"], num_heads: int) -> Float[Tensor, "b h n e"]:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """torch's fused kernel; on a CPU in bfloat16 the plain formula, which is 2 to 6 times faster there."""
    if q.dtype != torch.bfloat16 or q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    return scores.softmax(-1) @ v


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection of query, key and value (Vaswani et al. 2017, section 3.2).

    `key_bias` False: only query and value have a bias (BEiT). A key bias shifts all scores of a query equally, which
    the softmax cancels.
    """

    def __init__(self, dim: int, num_heads: int, key_bias: bool = True):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
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
        """The tokens after self-attention. With a `cache`, the newest `tokens` attend to cached ones too."""
        values, key_layout = self._project(tokens.values), tokens.layout
        if _in_groups(values) and cache is None and _retained.get() is None:
            context = _attend_grouped((values,), self.num_heads, key_layout, key_layout, allowed, bias)
            return Tokens(self.out(context), tokens.layout)
        query, key, value = values.chunk(3, -1)
        if cache is not None:
            key, value, key_layout = cache.update(self, key, value, key_layout)
        context = scaled_dot_product_attention(
            query, key, value, self.num_heads, tokens.layout, key_layout, allowed, bias
        )
        return Tokens(self.out(context), tokens.layout)

    def attend_from(self, query_tokens: Tokens, tokens: Tokens) -> Tokens:
        """The `query_tokens`, some of the `tokens`, after self-attention to all `tokens`."""
        query = self._project(query_tokens.values, slice(None, self.out.in_features))
        key, value = self._project(tokens.values, slice(self.out.in_features, None)).chunk(2, -1)
        context = scaled_dot_product_attention(query, key, value, self.num_heads, query_tokens.layout, tokens.layout)
        return Tokens(self.out(context), query_tokens.layout)

    def _project(self, values: Tensor, part: slice = slice(None)) -> Tensor:
        """Query, key and value side by side, or a `part` of these channels."""
        bias = self.qkv.bias
        if self.query_bias is not None and self.value_bias is not None:
            bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        elif part == slice(None):
            return self.qkv(values)
        return F.linear(values, self.qkv.weight[part], bias[part])


class CrossAttention(nn.Module):
    """Multi-head cross-attention: queries from `tokens`, keys and values from `context`.

    `context_dim`: channels of the context. `attention_dim`: width of all heads together. Both default to `dim`.
    Source: Vaswani et al. 2017, section 3.2.3.
    """

    def __init__(self, dim: int, num_heads: int, context_dim: int | None = None, attention_dim: int | None = None):
        super().__init__()
        attention_dim = attention_dim or dim
        if attention_dim % num_heads:
            raise ValueError(f"attention_dim {attention_dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.query = nn.Linear(dim, attention_dim)
        self.key = nn.Linear(context_dim or dim, attention_dim)
        self.value = nn.Linear(context_dim or dim, attention_dim)
        self.out = nn.Linear(attention_dim, dim)

    def forward(self, tokens: Tokens, context: Context) -> Tokens:
        """The tokens after cross-attention; with a `SharedContext`, each context is projected once."""
        query = self.query(tokens.values)
        if _retained.get() is not None:
            context = expanded(context)
        if isinstance(context, SharedContext):
            attended = self._attend_shared(query, tokens.layout, context)
        else:
            key, value = self.key(context.values), self.value(context.values)
            attended = scaled_dot_product_attention(query, key, value, self.num_heads, tokens.layout, context.layout)
        return Tokens(self.out(attended), tokens.layout)

    def project(self, context: Tokens) -> KeyValues:
        """The keys and values of `context`, as `SharedContext` keeps them."""
        key, value = self.key(context.values), self.value(context.values)
        if not context.packed:
            key, value = (_split_heads(x, self.num_heads).contiguous() for x in (key, value))
        return KeyValues(key, value, context.layout)

    def _attend_shared(self, query: Float[Tensor, "*q d"], layout: Layout, context: SharedContext) -> Tensor:
        folded, folded_layout = context.fold(query, layout)
        projected = context.project(self, self.project)
        if folded.dim() == 3:
            mask = None if projected.layout.full else projected.layout.mask[:, None, None, :]
            heads = _softmax_attention(_split_heads(folded, self.num_heads), projected.key, projected.value, mask)
            return context.unfold(heads.transpose(1, 2).flatten(2), query, layout)
        attended = scaled_dot_product_attention(
            folded, *projected.pack(), self.num_heads, folded_layout, projected.layout
        )
        return context.unfold(attended, query, layout)
