"""Attention gives the same values and gradients in either memory layout and with every kernel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diptych.modules.attention import (
    Causal,
    CrossAttention,
    SelfAttention,
    SharedContext,
    _attend_padded,
    _softmax_attention,
    causal,
    retain_attention,
    scaled_dot_product_attention,
)
from diptych.modules.packed_attention import attend_grouped, attend_jagged
from diptych.modules.tokens import Layout, Span, Tokens

WIDTH, HEADS = 8, 2


def layout(lengths: list[int], columns: int | None = None, gaps: bool = False) -> Layout:
    """A layout of samples of these lengths, right-padded, or with `gaps` padded at random columns."""
    n = max(lengths) if columns is None else columns
    mask = torch.arange(n) < torch.tensor(lengths)[:, None]
    if gaps:
        shuffle = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)).argsort(1)
        mask = mask.gather(1, shuffle)
    return Layout(mask, (Span("text", "words", n),))


def padded_values(at: Layout, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Padded values that are huge at padding, so that attention to padding would show."""
    b, n = at.mask.shape
    values = torch.randn(b, n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(at.mask[:, :, None], values, 1e3).to(dtype)


def by_loop(q: Tensor, k: Tensor, v: Tensor, query: Layout, key: Layout) -> Tensor:
    """The formula softmax(q kᵀ / √d) v, one sample and one head at a time. Packed."""
    out = []
    for i in range(len(q)):
        a, b, c = q[i][query.mask[i]], k[i][key.mask[i]], v[i][key.mask[i]]
        heads = zip(*(x.chunk(HEADS, 1) for x in (a, b, c)), strict=True)
        out.append(torch.cat([(x @ y.T / x.shape[1] ** 0.5).softmax(1) @ z for x, y, z in heads], 1))
    return torch.cat(out)


def packed(x: Tensor, at: Layout) -> Tensor:
    return x.flatten(0, 1)[at.flat]


def padded_path(q: Tensor, k: Tensor, v: Tensor, query: Layout, key: Layout) -> Tensor:
    return packed(_attend_padded(q, k, v, HEADS, key), query)


def grouped_path(q: Tensor, k: Tensor, v: Tensor, query: Layout, key: Layout) -> Tensor:
    return attend_grouped(
        (packed(q, query), packed(k, key), packed(v, key)), HEADS, query, key, kernel=_softmax_attention
    )


def jagged_path(q: Tensor, k: Tensor, v: Tensor, query: Layout, key: Layout) -> Tensor:
    return attend_jagged(packed(q, query), packed(k, key), packed(v, key), HEADS, query, key)


PATHS: dict[str, Callable[..., Tensor]] = {"padded": padded_path, "grouped": grouped_path, "jagged": jagged_path}
lengths = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def both_layouts(queries: list[int], keys: list[int] | None, gaps: bool) -> tuple[Layout, Layout]:
    """Layouts of queries and keys of these lengths; `keys` None: self-attention, one layout for both."""
    query = layout(queries, gaps=gaps)
    return query, query if keys is None else layout((keys * len(queries))[: len(queries)], columns=7, gaps=gaps)


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=25, deadline=None)
@given(queries=lengths, keys=st.none() | lengths, gaps=st.booleans())
def test_every_path_equals_the_formula_in_values_and_gradients(
    path: str, queries: list[int], keys: list[int] | None, gaps: bool
):
    query, key = both_layouts(queries, keys, gaps)
    inputs = [padded_values(at, i).requires_grad_() for i, at in enumerate((query, key, key))]
    q, k, v = inputs
    results = [function(q, k, v, query, key) for function in (PATHS[path], by_loop)]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    weight = torch.randn(results[0].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), inputs) for x in results)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", ["padded", "grouped"])
@pytest.mark.parametrize("lengths", [[4, 4], [5, 2, 5, 1]])
def test_bfloat16_on_a_cpu_stays_within_its_precision(path: str, lengths: list[int]):
    """On a CPU the plain formula replaces torch's kernel: 8 bits of mantissa, so 2 % of the largest value."""
    at = layout(lengths)
    exact = [padded_values(at, i) for i in range(3)]
    inputs = [x.bfloat16().requires_grad_() for x in exact]
    wanted_inputs = [x.detach().double().requires_grad_() for x in inputs]
    q, k, v = wanted_inputs
    got, wanted = PATHS[path](*inputs, at, at), by_loop(q, k, v, at, at)
    assert got.dtype == torch.bfloat16
    assert (got.double() - wanted).abs().max() < 0.02 * wanted.abs().max()
    grads = torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(wanted.sum(), wanted_inputs)
    for a, b in zip(*grads, strict=True):
        assert (a.double() - b).abs().max() < 0.04 * b.abs().max() + 0.01


def test_the_layout_selects_the_path_on_a_cpu():
    at = layout([3, 1])
    values = padded_values(at, 0)
    rows = packed(values, at)
    assert scaled_dot_product_attention(values, values, values, HEADS, at, at).shape == values.shape
    torch.testing.assert_close(
        scaled_dot_product_attention(rows, rows, rows, HEADS, at, at), padded_path(values, values, values, at, at)
    )


def attention() -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(WIDTH, HEADS).double()


@pytest.mark.parametrize("lengths", [[3, 1, 4], [2, 2]])
def test_the_amount_and_values_of_padding_change_nothing(lengths: list[int]):
    module = attention()
    narrow, wide = layout(lengths), layout(lengths, columns=9)
    values = padded_values(narrow, 0)
    wide_values = torch.full((len(lengths), 9, WIDTH), -1e3, dtype=torch.float64)
    wide_values[:, : values.shape[1]] = torch.where(narrow.mask[:, :, None], values, 7.0)
    a, b = module(Tokens(values, narrow)), module(Tokens(wide_values, wide))
    torch.testing.assert_close(a.values[narrow.mask], b.values[wide.mask], rtol=1e-12, atol=1e-12)


def test_self_attention_and_its_gradients_are_the_same_packed_and_padded():
    module, at = attention(), layout([3, 1, 4, 3], gaps=True)
    results = []
    for tokens in (Tokens(padded_values(at, 0), at), Tokens(padded_values(at, 0), at).pack()):
        out = module(tokens).pack().values
        results.append([out, *torch.autograd.grad((out**2).sum(), list(module.parameters()))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_sample_attends_to_no_other_sample():
    """In both layouts, changing one sample changes no other."""
    at = layout([3, 3, 2])
    values = padded_values(at, 0)
    other = values.clone()
    other[0] += 1
    for path in PATHS.values():
        a, b = path(values, values, values, at, at), path(other, other, other, at, at)
        assert torch.equal(a[3:], b[3:])
        assert not torch.allclose(a[:3], b[:3])


def test_dim_must_be_divisible_by_the_number_of_heads():
    with pytest.raises(ValueError, match="dim 10 is not divisible by num_heads 4"):
        SelfAttention(10, 4)


def self_attention(tokens: Tokens, bias: Tensor | None = None) -> Tensor:
    return attention()(tokens, None, bias).pack().values


def causal_attention(tokens: Tokens) -> Tensor:
    return attention()(tokens, Causal()).pack().values


def masked_and_biased(tokens: Tokens) -> Tensor:
    n = tokens.mask.shape[1]
    bias = torch.randn(HEADS, n, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return attention()(tokens, causal(n, n), bias).pack().values


def cross_attention(tokens: Tokens) -> Tensor:
    torch.manual_seed(1)
    return CrossAttention(WIDTH, HEADS).double()(tokens, tokens.index_samples(torch.tensor([1, 2, 0]))).pack().values


def shared_cross_attention(tokens: Tokens) -> Tensor:
    torch.manual_seed(1)
    context = SharedContext(tokens.index_samples(torch.tensor([1, 2])), torch.tensor([0, 0, 1]))
    return CrossAttention(WIDTH, HEADS).double()(tokens, context).pack().values


@pytest.mark.parametrize(
    "compute", [self_attention, causal_attention, masked_and_biased, cross_attention, shared_cross_attention]
)
@pytest.mark.parametrize("pack", [False, True])
def test_retained_attention_has_the_same_output(compute: Callable[[Tokens], Tensor], pack: bool):
    """In either layout; the probabilities of each real query sum to 1 over the keys that are not padding."""
    at = layout([3, 1, 4])
    tokens = Tokens(padded_values(at, 0), at)
    tokens = tokens.pack() if pack else tokens
    wanted = compute(tokens)
    with retain_attention(lambda query, key: False) as none:
        torch.testing.assert_close(compute(tokens), wanted, rtol=1e-9, atol=1e-9)
    with retain_attention(lambda query, key: True) as maps:
        got = compute(tokens)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    assert not none
    (one,) = maps
    rows = one.probabilities.transpose(1, 2)[one.query.mask]  # tokens, heads, keys
    torch.testing.assert_close(rows.sum(-1), torch.ones(len(rows), HEADS, dtype=torch.float64))
    keys = one.key.mask[:, None, None].expand_as(one.probabilities)
    assert (one.probabilities.masked_fill(keys, 0).transpose(1, 2)[one.query.mask] == 0).all()


def test_retained_attention_has_gradients_where_the_weights_have_none():
    at = layout([3, 1, 4])
    module = attention().requires_grad_(False)
    with retain_attention(lambda query, key: True) as maps:
        out = module(Tokens(padded_values(at, 0), at))
    (gradient,) = torch.autograd.grad(out.values.sum(), maps[0].probabilities)
    assert gradient.abs().sum() > 0
    with torch.no_grad(), retain_attention(lambda query, key: True) as maps:
        module(Tokens(padded_values(at, 0), at))
    assert not maps[0].probabilities.requires_grad
