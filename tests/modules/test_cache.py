"""Decoding token by token with a key-value cache equals one causal pass."""

from __future__ import annotations

import pytest
import torch

from diptych.modules.attention import KVCache, causal
from diptych.modules.block import PostNormBlock
from diptych.modules.tokens import Span, Tokens, packing


def tokens(values: torch.Tensor) -> Tokens:
    return Tokens.from_padded(
        values, torch.ones(values.shape[:2], dtype=torch.bool), Span("text", "words", values.shape[1])
    )


@torch.no_grad()
def test_token_by_token_equals_one_causal_pass():
    torch.manual_seed(0)
    block, values, context = (
        PostNormBlock(16, 4, 32, context_dim=8).eval(),
        torch.randn(3, 5, 16),
        torch.randn(3, 2, 8),
    )
    full = block(tokens(values), tokens(context), causal(5, 5)).to_padded()
    cache = KVCache()
    for i in range(5):
        assert cache.length == i
        one = block(tokens(values[:, i : i + 1]), tokens(context), causal(1, i + 1), cache).to_padded()
        torch.testing.assert_close(one[:, 0], full[:, i], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_decoding_continues_from_the_selected_samples():
    torch.manual_seed(0)
    block, values = PostNormBlock(16, 4, 32).eval(), torch.randn(3, 3, 16)
    order, cache = torch.tensor([2, 0, 2]), KVCache()
    block(tokens(values[:, :2]), None, causal(2, 2), cache)
    cache.index_samples(order)
    last = block(tokens(values[order][:, 2:]), None, causal(1, 3), cache).to_padded()
    full = block(tokens(values[order]), None, causal(3, 3)).to_padded()
    torch.testing.assert_close(last[:, 0], full[:, 2], rtol=1e-5, atol=1e-6)


def test_packed_tokens_with_a_cache_raise_an_error():
    block = PostNormBlock(16, 4, 32)
    with packing(True), pytest.raises(ValueError, match="outside `packing`"):
        block(tokens(torch.randn(1, 2, 16)), None, None, KVCache())


@torch.no_grad()
def test_a_mask_gives_the_same_values_packed_and_padded():
    torch.manual_seed(0)
    block, values = PostNormBlock(16, 4, 32).eval(), torch.randn(3, 4, 16)
    mask = torch.arange(4) < torch.tensor([4, 2, 3])[:, None]
    padded = block(Tokens.from_padded(values, mask, Span("text", "words", 4)), None, causal(4, 4)).to_padded()[mask]
    with packing(True):
        packed = block(Tokens.from_padded(values, mask, Span("text", "words", 4)), None, causal(4, 4)).to_padded()[mask]
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-6)
