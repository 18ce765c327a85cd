"""Single-stream fusion: one transformer over text and image tokens, pooled at the first text token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diptych.modules.block import PreNormBlock
from diptych.modules.fusion import ConcatFusion
from diptych.modules.pool import Pooler
from diptych.modules.tokens import FusedTokens, Span, Tokens, packing

WIDTH = 8


def fusion() -> ConcatFusion:
    torch.manual_seed(0)
    blocks = nn.ModuleList(PreNormBlock(WIDTH, 2, 16) for _ in range(2))
    return ConcatFusion(blocks, nn.LayerNorm(WIDTH), Pooler(WIDTH)).double()


def tokens(modality: str, lengths: list[int], seed: int) -> Tokens:
    values = torch.randn(len(lengths), 5, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    return Tokens.from_padded(values, mask, Span(modality, "cls", 1), Span(modality, "words", 4))


def both(packed: bool, lengths: tuple[list[int], list[int]] = ([3, 5], [4, 1])) -> tuple[Tokens, Tokens]:
    with packing(packed):
        return tokens("text", lengths[0], 1), tokens("image", lengths[1], 2)


def flat(pair: FusedTokens) -> list[Tensor]:
    return [pair.text.pack().values, pair.image.pack().values, pair.pooled]


def test_fusion_equals_one_transformer_over_the_concatenated_sequence():
    """The reference computes sample 0 unimodal, without padding or packing."""
    module = fusion()
    text, image = both(packed=False)
    x = torch.cat([text.values[:1, :3], image.values[:1, :4]], 1)
    for block in module.blocks:
        assert isinstance(block, PreNormBlock)
        q, k, v = block.attention.qkv(block.norm1(x)).unflatten(2, (3, 2, WIDTH // 2)).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / (WIDTH // 2) ** 0.5
        x = x + block.attention.out(torch.einsum("bhqk,bkhd->bqhd", scores.softmax(3), v).flatten(2))
        x = x + block.feedforward(block.norm2(x))
    x = module.norm(x)
    pair = module(text, image)
    torch.testing.assert_close(pair.text.values[:1, :3], x[:, :3])
    torch.testing.assert_close(pair.image.values[:1, :4], x[:, 3:])
    torch.testing.assert_close(pair.pooled[:1], module.pooler(x[:, 0]))


def test_outputs_keep_their_layout_and_packed_equals_padded():
    module = fusion()
    padded, packed = (module(*both(p)) for p in (False, True))
    assert packed.text.packed and not padded.text.packed
    assert [s.modality for s in packed.image.layout.spans] == ["image", "image"]
    for a, b in zip(flat(padded), flat(packed), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("packed", [False, True])
def test_each_modality_depends_on_the_other(packed: bool):
    module = fusion()
    text, image = both(packed)
    before = module(text, image)
    for pair in (
        module(text.add(torch.eye(WIDTH).double()[0]), image),
        module(text, image.add(torch.eye(WIDTH).double()[0])),
    ):
        for a, b in zip(flat(before), flat(pair), strict=True):
            assert (a - b).abs().max() > 1e-6


@pytest.mark.parametrize("packed", [False, True])
def test_unimodal_encoding_runs_the_same_blocks_on_one_modality(packed: bool):
    module = fusion()
    text, _ = both(packed)
    unimodal = module.encode_unimodal(text)
    assert unimodal.layout is text.layout
    expected = text
    for block in module.blocks:
        expected = block(expected)
    torch.testing.assert_close(unimodal.values, module.norm(expected.values))
