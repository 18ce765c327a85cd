"""The formulas of the transformer block and its parts, and weight initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diptych.modules.block import FeedForward, PreNormBlock
from diptych.modules.init import init_transformer
from diptych.modules.pool import Pooler
from diptych.modules.tokens import Span, Tokens


def test_a_prenorm_block_is_two_residual_branches_on_normalised_tokens():
    torch.manual_seed(0)
    block = PreNormBlock(8, 2, 16).double()
    values = torch.randn(2, 3, 8, dtype=torch.float64)
    tokens = Tokens.from_padded(values, torch.ones(2, 3, dtype=torch.bool), Span("text", "words", 3))
    x = values + block.attention(tokens.map(block.norm1)).values
    torch.testing.assert_close(block(tokens).values, x + block.feedforward(block.norm2(x)))


def test_feedforward_uses_the_exact_gelu():
    network = FeedForward(1, 1)
    for layer in (network.fc1, network.fc2):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    x = torch.tensor([[1.5]])
    assert network(x).item() == pytest.approx(1.5 * 0.5 * (1 + torch.erf(torch.tensor(1.5 / 2**0.5)).item()), abs=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_dropout_acts_on_both_branches_in_training_only(packed: bool):
    torch.manual_seed(0)
    block = PreNormBlock(8, 2, 16, dropout=0.5)
    tokens = Tokens.from_padded(torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool), Span("text", "words", 3))
    tokens = tokens.pack() if packed else tokens
    assert not torch.equal(block(tokens).values, block(tokens).values)
    block.eval()
    assert torch.equal(block(tokens).values, block(tokens).values)


def test_pooler_is_tanh_of_a_linear_layer():
    pooler, first = Pooler(4), 100 * torch.randn(3, 4)
    torch.testing.assert_close(pooler(first), torch.tanh(first @ pooler.dense.weight.T + pooler.dense.bias))


def test_untrained_weights_are_small_normal_and_biases_zero():
    torch.manual_seed(0)
    linear, table, convolution, norm = (
        nn.Linear(200, 200),
        nn.Embedding(200, 200),
        nn.Conv2d(8, 200, 3),
        nn.LayerNorm(200),
    )
    nn.init.constant_(norm.weight, 5.0)
    nn.ModuleList([linear, table, convolution, norm]).apply(init_transformer)
    for layer in (linear, table, convolution):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(layer.weight.mean().item()) < 1e-3
    for bias in (linear.bias, convolution.bias):
        assert bias is not None and bias.abs().max() == 0
    assert torch.equal(norm.weight, torch.ones(200)) and torch.equal(norm.bias, torch.zeros(200))
