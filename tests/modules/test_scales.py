"""CrossViT's input: resized images and the convolutional stem."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from diptych.batch import Image
from diptych.modules.embeddings import MultiScalePatchEmbedding, conv_stem, resized_to


def test_each_image_is_resized_from_its_own_size():
    pixels = torch.randn(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    image = Image(pixels, torch.tensor([[20, 24], [8, 8], [20, 24]]))
    square = resized_to(image, 8)
    torch.testing.assert_close(square[[0, 2]], F.interpolate(pixels[[0, 2]], (8, 8), mode="bicubic"))
    assert torch.equal(square[1], pixels[1, :, :8, :8])


@pytest.mark.parametrize("patch_size", [12, 16])
def test_a_stem_gives_one_cell_per_patch(patch_size: int):
    assert conv_stem(patch_size, 8)(torch.zeros(1, 3, 3 * patch_size, 2 * patch_size)).shape == (1, 8, 3, 2)


def test_unsupported_patch_sizes_raise_an_error():
    with pytest.raises(ValueError, match="got patch_size 14"):
        conv_stem(14, 8)
    with pytest.raises(ValueError, match="image size 50 is not divisible by patch_size 16"):
        MultiScalePatchEmbedding(50, 16, 8)
