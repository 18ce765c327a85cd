"""Single-stream fusion: one transformer over both, read at the text's first token."""

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
    real = torch.arange(5) < torch.tensor(lengths)[:, None]
    return Tokens.from_padded(values, real, Span(modality, "cls", 1), Span(modality, "words", 4))


def both(packed: bool, lengths: tuple[list[int], list[int]] = ([3, 5], [4, 1])) -> tuple[Tokens, Tokens]:
    with packing(packed):
        return tokens("text", lengths[0], 1), tokens("image", lengths[1], 2)


def flat(pair: FusedTokens) -> list[Tensor]:
    return [pair.text.pack().values, pair.image.pack().values, pair.pooled]


def test_it_is_one_sequence_per_sample():
    """Text, then image, of sample 0 alone, with nothing joined or packed."""
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


def test_each_side_keeps_its_layout_and_both_layouts_agree():
    module = fusion()
    padded, packed = (module(*both(p)) for p in (False, True))
    assert packed.text.packed and not padded.text.packed
    assert [s.modality for s in packed.image.layout.spans] == ["image", "image"]
    for a, b in zip(flat(padded), flat(packed), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("packed", [False, True])
def test_each_side_reads_the_other(packed: bool):
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
def test_alone_is_the_same_blocks_without_the_other(packed: bool):
    module = fusion()
    text, _ = both(packed)
    alone = module.encode_unimodal(text)
    assert alone.layout is text.layout
    by_hand = text
    for block in module.blocks:
        by_hand = block(by_hand)
    torch.testing.assert_close(alone.values, module.norm(by_hand.values))
