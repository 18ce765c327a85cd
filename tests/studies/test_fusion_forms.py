"""The survey's fusion forms: in both layouts, and as a replacement in a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.batch import Image, Text
from diptych.models.vilt.config import ViLTConfig
from diptych.models.vilt.model import ViLT
from diptych.modules.block import PreNormBlock
from diptych.modules.fusion import ConcatFusion
from diptych.modules.pool import Pooler
from diptych.modules.tokens import FusedTokens, Span, Tokens, packing
from diptych.studies.fusion_forms import EarlySum, InTurn, Streams

WIDTH = 8


def blocks(n: int = 1) -> nn.ModuleList:
    return nn.ModuleList(PreNormBlock(WIDTH, 2, 16) for _ in range(n))


def norm() -> nn.LayerNorm:
    return nn.LayerNorm(WIDTH)


def concatenate() -> ConcatFusion:
    return ConcatFusion(blocks(2), norm(), Pooler(WIDTH))


def streams() -> Streams:
    return Streams(blocks(), blocks(), norm(), norm(), Pooler(WIDTH))


FORMS: dict[str, Callable[[], Any]] = {
    "early sum": lambda: EarlySum(blocks(), norm(), Pooler(WIDTH)),
    "early concatenation": concatenate,
    "many streams to one": lambda: InTurn(streams(), concatenate()),
    "one stream to many": lambda: InTurn(concatenate(), streams()),
}


def tokens(modality: str, lengths: list[int], n: int, seed: int) -> Tokens:
    values = torch.randn(len(lengths), n, WIDTH, generator=torch.Generator().manual_seed(seed))
    real = torch.arange(n) < torch.tensor(lengths)[:, None]
    return Tokens.from_padded(values, real, Span(modality, "cls", 1), Span(modality, "words", n - 1))


def flat(pair: FusedTokens) -> list[Tensor]:
    return [pair.text.pack().values, pair.image.pack().values, pair.pooled]


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_packed_equals_padded_and_modalities_keep_their_layouts(form: str):
    torch.manual_seed(0)
    fusion = FORMS[form]().eval()
    pairs = []
    for packed in (False, True):
        with packing(packed):
            text, image = tokens("text", [3, 5], 5, 1), tokens("image", [6, 2], 6, 2)
            pair = fusion(text, image)
            assert pair.text.packed == packed
            assert pair.text.layout.spans == text.layout.spans
            assert pair.image.layout.spans == image.layout.spans
            assert fusion.encode_unimodal(text).mask.equal(text.mask)
            pairs.append(pair)
    for a, b in zip(*map(flat, pairs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_the_pooled_vector_depends_on_both_modalities(form: str):
    torch.manual_seed(0)
    fusion = FORMS[form]().eval()
    text, image = tokens("text", [3, 5], 5, 1), tokens("image", [6, 2], 6, 2)
    before = fusion(text, image).pooled
    shift = torch.linspace(-1, 1, WIDTH)
    assert (fusion(text.add(shift), image).pooled - before).abs().max() > 1e-4
    assert (fusion(text, image.add(shift)).pooled - before).abs().max() > 1e-4


@torch.no_grad()
def test_streams_do_not_interact():
    torch.manual_seed(0)
    fusion = streams().eval()
    text = tokens("text", [3, 5], 5, 1)
    first, second = (fusion(text, tokens("image", [6, 2], 6, seed)) for seed in (2, 3))
    torch.testing.assert_close(first.pooled, second.pooled)


def test_early_summation_adds_tokens_by_position():
    fusion = EarlySum(nn.ModuleList(), nn.Identity(), nn.Identity())
    fusion.shares.data = torch.tensor([2.0, 3.0])
    text, image = tokens("text", [2, 3], 3, 1), tokens("image", [4, 1], 4, 2)
    pair = fusion(text, image)
    torch.testing.assert_close(pair.text.values[0, :2], 2 * text.values[0, :2] + 3 * image.values[0, :2])
    torch.testing.assert_close(pair.image.values[0, 2:], 3 * image.values[0, 2:])
    torch.testing.assert_close(pair.text.values[1, 1:3], 2 * text.values[1, 1:3])


@pytest.mark.parametrize("form", FORMS)
def test_a_models_fusion_can_be_replaced_by_assignment(form: str):
    torch.manual_seed(0)
    model = ViLT(ViLTConfig(WIDTH, 1, 2, 16, patch_size=4, grid=(2, 2), vocab_size=20, text_length=5, dropout=0.0))
    model.transformer = FORMS[form]()
    text = Text(torch.randint(1, 20, (2, 5)), torch.ones(2, 5, dtype=torch.bool))
    pair = model.fuse(model.encode_text(text), model.encode_image(Image.from_full(torch.randn(2, 3, 8, 8))))
    pair.pooled.sum().backward()
    assert all(p.grad is not None for p in model.words.parameters())
    assert model.patches.project.weight.grad is not None
