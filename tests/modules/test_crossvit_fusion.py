"""CrossViT's fusion of a class token with the other branch's patches."""

from __future__ import annotations

import torch

from diptych.modules.fusion import ClassTokenCrossAttention, CrossScaleFusion
from diptych.modules.tokens import Span, Tokens


def branch(dim: int, patches: int, seed: int) -> Tokens:
    values = torch.randn(2, 1 + patches, dim, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(2, 1 + patches, dtype=torch.bool)
    return Tokens.from_padded(values, mask, Span("image", "cls", 1), Span("image", "patches", patches))


def test_only_the_class_token_changes_and_it_depends_on_the_other_branchs_patches():
    torch.manual_seed(0)
    fusion, tokens, other = CrossScaleFusion(8, 12, 3), branch(8, 4, 1), branch(12, 5, 2)
    result = fusion(tokens, other)
    assert torch.equal(result.values[:, 1:], tokens.values[:, 1:])
    changed_patches = Tokens(torch.cat([other.values[:, :3], other.values[:, 3:].flip(2)], 1), other.layout)
    assert not torch.allclose(fusion(tokens, changed_patches).first(), result.first())
    changed_class_token = Tokens(torch.cat([other.values[:, :1].flip(2), other.values[:, 1:]], 1), other.layout)
    assert torch.equal(fusion(tokens, changed_class_token).first(), result.first()), (
        "the other branch's class token is not used"
    )


def test_attention_of_the_class_token_has_a_residual_connection():
    torch.manual_seed(0)
    layer, tokens = ClassTokenCrossAttention(8, 2), branch(8, 3, 1)
    with torch.no_grad():
        layer.attention.out.weight.zero_()
        layer.attention.out.bias.zero_()
    assert torch.equal(layer(tokens).values, tokens.values[:, :1])


def test_the_second_layer_attends_to_the_class_token_only():
    torch.manual_seed(0)
    two, tokens, other = CrossScaleFusion(8, 12, 3, depth=2), branch(8, 4, 1), branch(12, 5, 2)
    sequence = Tokens.concat(tokens.select(name="cls").map(two.out), other.select(name="patches"))
    cls = two.layers[1](two.layers[0](sequence))
    assert cls.values.shape == (2, 1, 12)
    torch.testing.assert_close(two(tokens, other).first(), two.back(cls.first()))
