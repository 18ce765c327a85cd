"""BERT's and ViT's input embeddings, on batches of different lengths and image sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from diptych.batch import Image, Text
from diptych.modules.embeddings import PatchEmbedding, PatchEmbeddingWithoutPosition, TextEmbedding
from diptych.modules.position import resize_aligned
from diptych.modules.tokens import packing


def patches(**changes) -> PatchEmbedding:
    torch.manual_seed(0)
    defaults: dict[str, Any] = dict(dim=6, patch_size=4, grid=(2, 3), resize=resize_aligned)
    return PatchEmbedding(**(defaults | changes)).double()


def test_the_patch_projection_equals_the_papers_convolution():
    embed = patches()
    pixels = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    kernel = embed.project.weight.view(6, 3, 4, 4)
    expected = F.conv2d(pixels, kernel, embed.project.bias, stride=4).flatten(2).transpose(1, 2) + embed.position[:, 1:]
    tokens = embed(Image.from_full(pixels))
    torch.testing.assert_close(tokens.values[:, 1:], expected)
    torch.testing.assert_close(tokens.first(), (embed.cls + embed.position[:, :1])[0].expand(2, 6))
    assert [s.name for s in tokens.layout.spans] == ["cls", "patches"]
    assert tokens.layout.spans[1].grid == (2, 3)


def test_a_patch_is_real_where_it_overlaps_its_image():
    pixels = torch.randn(3, 3, 8, 12, dtype=torch.float64)
    image = Image(pixels, torch.tensor([[8, 12], [5, 4], [4, 9]]))
    mask = patches()(image).mask[:, 1:].unflatten(1, (2, 3))
    assert mask.tolist() == [
        [[True, True, True], [True, True, True]],
        [[True, False, False], [True, False, False]],
        [[True, True, True], [False, False, False]],
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_an_images_embedding_does_not_depend_on_its_padding(packed: bool):
    embed = patches()
    pixels = torch.randn(1, 3, 8, 4, dtype=torch.float64)
    with packing(packed):
        single = embed(Image.from_full(pixels)).pack().values
        padded = F.pad(pixels, (0, 8, 0, 4))
        tokens = embed(Image(padded, torch.tensor([[8, 4]])))
    torch.testing.assert_close(tokens.pack().values, single)
    assert len(tokens.pack().values) == 1 + 2


@pytest.mark.parametrize("with_position", [True, False])
def test_the_mask_token_replaces_masked_patches_but_not_their_positions(with_position: bool):
    embed = patches() if with_position else PatchEmbeddingWithoutPosition(6, 4).double()
    pixels, mask_token = torch.randn(2, 3, 8, 12, dtype=torch.float64), torch.randn(1, 1, 6, dtype=torch.float64)
    image = Image(pixels, torch.tensor([[8, 12], [4, 9]]))
    masked = torch.tensor([[0, 1, 0, 0, 1, 1], [1, 0, 0, 0, 0, 0]]).bool()
    full, with_mask = embed(image), embed(image, masked, mask_token)
    assert torch.equal(with_mask.mask, full.mask) and torch.equal(with_mask.first(), full.first())
    positions = embed.positions(image.extents(4), 2, 3) if isinstance(embed, PatchEmbedding) else torch.zeros(2, 6, 6)
    for i, cell in full.mask[:, 1:].nonzero().tolist():
        expected = mask_token[0, 0] + positions[i, cell] if masked[i, cell] else full.to_padded()[i, 1 + cell]
        torch.testing.assert_close(with_mask.to_padded()[i, 1 + cell], expected)


def test_the_text_embedding_is_berts_normalised_sum():
    torch.manual_seed(0)
    embed = TextEmbedding(11, 5, 6).double()
    ids = torch.tensor([[1, 2, 3, 0]])
    tokens = embed(Text(ids, ids > 0))
    assert embed.position is not None and embed.segment is not None
    total = embed.word.weight[ids] + embed.position.weight[:4] + embed.segment.weight[0]
    torch.testing.assert_close(tokens.values, F.layer_norm(total, (6,), embed.norm.weight, embed.norm.bias, 1e-12))
    assert [(s.name, s.length) for s in tokens.layout.spans] == [("cls", 1), ("words", 3)]


def test_a_text_longer_than_the_position_table_raises_an_error():
    ids = torch.ones(1, 6, dtype=torch.long)
    with pytest.raises(ValueError, match="text of 6 tokens, but the model has positions for 5"):
        TextEmbedding(11, 5, 6)(Text(ids, ids > 0))
