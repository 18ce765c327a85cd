from __future__ import annotations

import torch

from diptych.modules.fusion import ClassTokenCrossAttention, CrossScaleFusion
from diptych.modules.tokens import Span, Tokens


def branch(dim: int, patches: int, seed: int) -> Tokens:
    values = torch.randn(2, 1 + patches, dim, generator=torch.Generator().manual_seed(seed))
    real = torch.ones(2, 1 + patches, dtype=torch.bool)
    return Tokens.from_padded(values, real, Span("image", "cls", 1), Span("image", "patches", patches))


def test_only_the_class_token_changes_and_it_reads_the_other_s_patches():
    torch.manual_seed(0)
    exchange, own, other = CrossScaleFusion(8, 12, 3), branch(8, 4, 1), branch(12, 5, 2)
    found = exchange(own, other)
    assert torch.equal(found.values[:, 1:], own.values[:, 1:])
    moved = Tokens(torch.cat([other.values[:, :3], other.values[:, 3:].flip(2)], 1), other.layout)
    assert not torch.allclose(exchange(own, moved).first(), found.first())
    without = Tokens(torch.cat([other.values[:, :1].flip(2), other.values[:, 1:]], 1), other.layout)
    assert torch.equal(exchange(own, without).first(), found.first()), "the other's class token is not read"


def test_one_attention_is_a_shortcut_around_it_and_a_softmax_over_all():
    torch.manual_seed(0)
    layer, tokens = ClassTokenCrossAttention(8, 2), branch(8, 3, 1)
    with torch.no_grad():
        layer.attention.out.weight.zero_()
        layer.attention.out.bias.zero_()
    assert torch.equal(layer(tokens).values, tokens.values[:, :1])


def test_a_second_block_reads_the_messenger_alone():
    torch.manual_seed(0)
    two, own, other = CrossScaleFusion(8, 12, 3, depth=2), branch(8, 4, 1), branch(12, 5, 2)
    messenger = Tokens.concat(own.select(name="cls").map(two.out), other.select(name="patches"))
    alone = two.layers[1](two.layers[0](messenger))
    assert alone.values.shape == (2, 1, 12)
    torch.testing.assert_close(two(own, other).first(), two.back(alone.first()))
