"""Causal attention: each token attends to self_attention and those before it, in either layout and with any padding."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from diptych.modules.attention import Causal, KVCache, causal, scaled_dot_product_attention
from diptych.modules.block import PreNormBlock
from diptych.modules.tokens import Layout, Span, Tokens

WIDTH, HEADS = 8, 2
LENGTHS = [4, 2, 5, 2]


def layout(columns: int = 5) -> Layout:
    return Layout(torch.arange(columns) < torch.tensor(LENGTHS)[:, None], (Span("text", "words", columns),))


def values(columns: int = 5, seed: int = 0) -> Tensor:
    drawn = torch.randn(len(LENGTHS), 5, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    wide = torch.full((len(LENGTHS), columns, WIDTH), 1e3, dtype=torch.float64)
    wide[:, :5] = drawn
    return wide


def by_loop(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula, one sample, head and row at a time: softmax over the row and those before it. Packed."""
    out = []
    for i, length in enumerate(LENGTHS):
        for row in range(length):
            heads = zip(
                *(x.chunk(HEADS, 1) for x in (q[i, row : row + 1], k[i, : row + 1], v[i, : row + 1])), strict=True
            )
            out.append(torch.cat([(a @ b.T / a.shape[1] ** 0.5).softmax(1) @ c for a, b, c in heads], 1))
    return torch.cat(out)


def self_attention(x: Tensor, at: Layout, allowed: Tensor | Causal, bias: Tensor | None = None) -> Tensor:
    return scaled_dot_product_attention(x, x, x, HEADS, at, at, allowed, bias)


def test_both_layouts_equal_the_formula_in_values_and_gradients_without_warnings():
    at = layout()
    inputs = [values(seed=i).requires_grad_() for i in range(3)]
    weight = torch.randn(sum(LENGTHS), WIDTH, dtype=torch.float64)
    expected = by_loop(inputs[0], inputs[1], inputs[2])
    with warnings.catch_warnings(action="error"):
        padded = scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], HEADS, at, at, Causal())
        q, k, v = (x[at.mask] for x in inputs)
        packed_rows = scaled_dot_product_attention(q, k, v, HEADS, at, at, Causal())
    for result in (padded[at.mask], packed_rows):
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
        grads = torch.autograd.grad((result * weight).sum(), inputs)
        expected_grads = torch.autograd.grad((expected * weight).sum(), inputs, retain_graph=True)
        for a, b in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_padding_attends_to_all_columns_before_it_and_real_tokens_to_no_padding():
    narrow, wide = layout(), layout(8)
    a, b = self_attention(values(), narrow, Causal()), self_attention(values(8), wide, Causal())
    torch.testing.assert_close(a, b[:, :5], rtol=1e-12, atol=1e-12)
    full = Layout(torch.ones(len(LENGTHS), 5, dtype=torch.bool), narrow.spans)
    without_padding = self_attention(values(), full, causal(5, 5))
    torch.testing.assert_close(a, without_padding, rtol=1e-12, atol=1e-12)


def test_a_causal_mask_can_be_combined_with_a_bias():
    at, bias = layout(), torch.randn(HEADS, 5, 5, dtype=torch.float64)
    result = self_attention(values(), at, Causal(), bias)
    expected = self_attention(values(), at, causal(5, 5), bias)
    torch.testing.assert_close(result[at.mask], expected[at.mask])


def test_decoding_in_parts_with_a_cache_gives_the_same_values():
    torch.manual_seed(0)
    block = PreNormBlock(WIDTH, HEADS, 16).double()
    full = Tokens.from_padded(values(), torch.ones(len(LENGTHS), 5, dtype=torch.bool), Span("text", "words", 5))
    cache, out = KVCache(), []
    for part in (slice(0, 2), slice(2, 3), slice(3, 5)):
        newest = full.values[:, part]
        tokens = Tokens.from_padded(
            newest, torch.ones(newest.shape[:2], dtype=torch.bool), Span("text", "words", newest.shape[1])
        )
        out.append(block(tokens, Causal(), cache=cache).values)
    torch.testing.assert_close(torch.cat(out, 1), block(full, Causal()).values)


@pytest.mark.parametrize("packed", [False, True])
def test_the_causal_mask_holds_in_bfloat16(packed: bool):
    at = layout()
    x = values().bfloat16()
    other = x.clone()
    other[:, 1:] += 1
    a, b = (Tokens(y, at).pack().values if packed else y for y in (x, other))
    a, b = (self_attention(y, at, Causal()) for y in (a, b))
    first = at.offsets[:-1] if packed else (slice(None), 0)
    assert torch.equal(a[first], b[first]) and not torch.equal(a, b)


def test_with_padding_false_padding_attends_to_real_tokens_only():
    """As in BERT: values at real positions do not change."""
    at = layout()
    result = self_attention(values(), at, Causal(padding=False))
    torch.testing.assert_close(result[at.mask], self_attention(values(), at, Causal())[at.mask])
    torch.testing.assert_close(result, self_attention(values(), at, causal(5, 5)))
    assert not torch.allclose(result[~at.mask], self_attention(values(), at, Causal())[~at.mask])
