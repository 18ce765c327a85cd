"""Initialisation of ViLT from a ViT."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diptych.batch import Image
from diptych.checkpoints.read import WeightsError
from diptych.models.initialize import initialize_vilt_from_vit
from diptych.models.vilt.config import ViLTConfig
from diptych.models.vilt.model import ViLT
from diptych.models.vit.config import ViTConfig
from diptych.models.vit.model import ViT
from diptych.modules.position import resize_bilinear

SIZE: dict[str, Any] = {"dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24, "patch_size": 4}


def vilt(**change: Any) -> ViLT:
    return ViLT(ViLTConfig(**SIZE | {"grid": (3, 3), "vocab_size": 30, "text_length": 6} | change))


def vit(**change: Any) -> ViT:
    model = ViT(ViTConfig(**SIZE | {"grid": (3, 3), "num_classes": 5} | change))
    for parameter in model.parameters():
        parameter.data.normal_()
    return model


def test_patches_blocks_and_norm_are_the_vit_s_and_the_rest_is_unchanged():
    a, b = vit(), vilt()
    before = {name: tensor.clone() for name, tensor in b.state_dict().items()}
    loaded = initialize_vilt_from_vit(b, a.state_dict())
    assert set(loaded) == {n for n in before if n.startswith(("patches.", "transformer.blocks.", "transformer.norm."))}
    unchanged = before.keys() - set(loaded)
    assert {"words.word.weight", "modality.weight", "transformer.pooler.dense.weight"} < unchanged
    assert all(torch.equal(b.state_dict()[name], before[name]) for name in unchanged)
    image = Image.from_full(torch.randn(2, 3, 12, 12))
    ours = b.eval().transformer.encode_unimodal(b.encode_image(image)).to_padded()
    torch.testing.assert_close(ours, a.eval().encode_image(image).to_padded())


def test_positions_of_another_size_are_resized():
    a, b = vit(grid=(4, 4)), vilt(grid=(2, 3))
    initialize_vilt_from_vit(b, a.state_dict())
    expected = resize_bilinear(a.patches.position[0, 1:].view(4, 4, 16), 2, 3).flatten(0, 1)
    assert torch.equal(b.patches.position[0, 1:], expected)
    assert torch.equal(b.patches.position[0, 0], a.patches.position[0, 0])
    with pytest.raises(WeightsError, match="8 positions, which is not a square number"):
        initialize_vilt_from_vit(b, vit(grid=(2, 4)).state_dict())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dim": 32}, r"patches\.cls is \(1, 1, 32\), the model has \(1, 1, 16\)"),
        ({"depth": 3}, r"unexpected: transformer\.blocks\.2"),
        ({"depth": 1}, r"lacks blocks\.1"),
        ({"patch_size": 8}, r"patches\.project\.weight is"),
    ],
)
def test_another_shape_raises_with_its_name_and_nothing_is_loaded(change: dict[str, int], named: str):
    b = vilt()
    before = {name: tensor.clone() for name, tensor in b.state_dict().items()}
    with pytest.raises(WeightsError, match=named):
        initialize_vilt_from_vit(b, vit(**change).state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in b.state_dict().items())
