"""Causal attention: each token sees itself and those before it, in either layout, whatever stands behind the text."""

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
    """Sample by sample, head by head, row by row: softmax over what came before. Real rows only."""
    out = []
    for i, length in enumerate(LENGTHS):
        for row in range(length):
            heads = zip(
                *(x.chunk(HEADS, 1) for x in (q[i, row : row + 1], k[i, : row + 1], v[i, : row + 1])), strict=True
            )
            out.append(torch.cat([(a @ b.T / a.shape[1] ** 0.5).softmax(1) @ c for a, b, c in heads], 1))
    return torch.cat(out)


def itself(x: Tensor, at: Layout, allowed: Tensor | Causal, bias: Tensor | None = None) -> Tensor:
    return scaled_dot_product_attention(x, x, x, HEADS, at, at, allowed, bias)


def test_both_layouts_give_the_formula_and_its_gradients_and_neither_warns():
    at = layout()
    inputs = [values(seed=i).requires_grad_() for i in range(3)]
    weight = torch.randn(sum(LENGTHS), WIDTH, dtype=torch.float64)
    wanted = by_loop(inputs[0], inputs[1], inputs[2])
    with warnings.catch_warnings(action="error"):
        canvas = scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], HEADS, at, at, Causal())
        q, k, v = (x[at.mask] for x in inputs)
        rows = scaled_dot_product_attention(q, k, v, HEADS, at, at, Causal())
    for found in (canvas[at.mask], rows):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        got = torch.autograd.grad((found * weight).sum(), inputs)
        right = torch.autograd.grad((wanted * weight).sum(), inputs, retain_graph=True)
        for a, b in zip(got, right, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_padding_sees_all_before_it_and_nothing_real_sees_padding():
    near, far = layout(), layout(8)
    a, b = itself(values(), near, Causal()), itself(values(8), far, Causal())
    torch.testing.assert_close(a, b[:, :5], rtol=1e-12, atol=1e-12)
    every = Layout(torch.ones(len(LENGTHS), 5, dtype=torch.bool), near.spans)
    seen = itself(values(), every, causal(5, 5))
    torch.testing.assert_close(a, seen, rtol=1e-12, atol=1e-12)


def test_a_bias_goes_with_it():
    at, bias = layout(), torch.randn(HEADS, 5, 5, dtype=torch.float64)
    got = itself(values(), at, Causal(), bias)
    right = itself(values(), at, causal(5, 5), bias)
    torch.testing.assert_close(got[at.mask], right[at.mask])


def test_token_by_token_through_a_cache_it_is_the_same():
    torch.manual_seed(0)
    block = PreNormBlock(WIDTH, HEADS, 16).double()
    whole = Tokens.from_padded(values(), torch.ones(len(LENGTHS), 5, dtype=torch.bool), Span("text", "words", 5))
    cache, out = KVCache(), []
    for part in (slice(0, 2), slice(2, 3), slice(3, 5)):
        piece = whole.values[:, part]
        tokens = Tokens.from_padded(
            piece, torch.ones(piece.shape[:2], dtype=torch.bool), Span("text", "words", piece.shape[1])
        )
        out.append(block(tokens, Causal(), cache=cache).values)
    torch.testing.assert_close(torch.cat(out, 1), block(whole, Causal()).values)


@pytest.mark.parametrize("packed", [False, True])
def test_in_bfloat16_the_mask_holds_too(packed: bool):
    at = layout()
    x = values().bfloat16()
    other = x.clone()
    other[:, 1:] += 1
    a, b = (Tokens(y, at).pack().values if packed else y for y in (x, other))
    a, b = (itself(y, at, Causal()) for y in (a, b))
    first = at.offsets[:-1] if packed else (slice(None), 0)
    assert torch.equal(a[first], b[first]) and not torch.equal(a, b)


def test_padding_that_sees_no_padding_sees_all_that_is_real():
    """BERT's kind: at real positions nothing changes, and padding attends to real ones alone."""
    at = layout()
    got = itself(values(), at, Causal(padding=False))
    torch.testing.assert_close(got[at.mask], itself(values(), at, Causal())[at.mask])
    torch.testing.assert_close(got, itself(values(), at, causal(5, 5)))
    assert not torch.allclose(got[~at.mask], itself(values(), at, Causal())[~at.mask])
