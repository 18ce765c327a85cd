"""A text that meets two images at once."""

from __future__ import annotations

import torch
from torch import nn

from diptych.modules.fusion import DualImageBlock, DualImageCrossAttention
from diptych.modules.tokens import Span, Tokens, packing


def tokens(n: int, dim: int, modality: str, seed: int) -> Tokens:
    real = torch.arange(n) < torch.tensor([n, n - 2])[:, None]
    values = torch.randn(2, n, dim, generator=torch.Generator().manual_seed(seed))
    return Tokens.from_padded(values, real, Span(modality, "words", n))


def parts() -> tuple[Tokens, tuple[Tokens, Tokens]]:
    return tokens(5, 8, "text", 0), (tokens(4, 6, "image", 1), tokens(3, 6, "image", 2))


@torch.no_grad()
def test_both_answers_are_averaged_or_merged():
    text, (left, right) = parts()
    mean, merged = DualImageCrossAttention(8, 2, 6), DualImageCrossAttention(8, 2, 6, merge=True)
    a, b = mean.first(text, left).values, mean.second(text, right).values
    torch.testing.assert_close(mean(text, (left, right)).values, (a + b) / 2)
    a, b = merged.first(text, left).values, merged.second(text, right).values
    assert isinstance(merged.merge, nn.Linear)
    torch.testing.assert_close(merged(text, (left, right)).values, merged.merge(torch.cat([a, b], -1)))


@torch.no_grad()
def test_packed_equals_padded_and_the_images_are_told_apart():
    block = DualImageBlock(8, 2, 16, 6, merge=True).eval()
    text, images = parts()
    padded = block(text, images).pack().values
    with packing(True):
        text, images = parts()
        torch.testing.assert_close(block(text, images).values, padded, rtol=1e-5, atol=1e-6)
    swapped = block(text, (images[1], images[0])).values
    assert not torch.allclose(swapped, padded, atol=1e-3)
