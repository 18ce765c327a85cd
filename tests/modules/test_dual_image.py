"""Cross-attention of a text to two images."""

from __future__ import annotations

import torch
from torch import nn

from diptych.modules.fusion import DualImageBlock, DualImageCrossAttention
from diptych.modules.tokens import Span, Tokens, packing


def tokens(n: int, dim: int, modality: str, seed: int) -> Tokens:
    mask = torch.arange(n) < torch.tensor([n, n - 2])[:, None]
    values = torch.randn(2, n, dim, generator=torch.Generator().manual_seed(seed))
    return Tokens.from_padded(values, mask, Span(modality, "words", n))


def text_and_images() -> tuple[Tokens, tuple[Tokens, Tokens]]:
    return tokens(5, 8, "text", 0), (tokens(4, 6, "image", 1), tokens(3, 6, "image", 2))


@torch.no_grad()
def test_the_two_results_are_averaged_or_merged():
    text, (left, right) = text_and_images()
    mean, merged = DualImageCrossAttention(8, 2, 6), DualImageCrossAttention(8, 2, 6, merge=True)
    a, b = mean.first(text, left).values, mean.second(text, right).values
    torch.testing.assert_close(mean(text, (left, right)).values, (a + b) / 2)
    a, b = merged.first(text, left).values, merged.second(text, right).values
    assert isinstance(merged.merge, nn.Linear)
    torch.testing.assert_close(merged(text, (left, right)).values, merged.merge(torch.cat([a, b], -1)))


@torch.no_grad()
def test_packed_equals_padded_and_the_order_of_images_matters():
    block = DualImageBlock(8, 2, 16, 6, merge=True).eval()
    text, images = text_and_images()
    padded = block(text, images).pack().values
    with packing(True):
        text, images = text_and_images()
        torch.testing.assert_close(block(text, images).values, padded, rtol=1e-5, atol=1e-6)
    swapped = block(text, (images[1], images[0])).values
    assert not torch.allclose(swapped, padded, atol=1e-3)
