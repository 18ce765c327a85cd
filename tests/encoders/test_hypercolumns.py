"""Hypercolumns of the frozen CNN (extra ``cnn``)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from diptych.encoders.efficientnet import FrozenCNN
from diptych.encoders.hypercolumns import STAGES, Hypercolumns

pytest.importorskip("efficientnet_lite_pytorch")


@pytest.fixture(scope="module")
def cnn() -> FrozenCNN:
    return FrozenCNN(0)


def _columns(cnn: FrozenCNN, pixels: torch.Tensor) -> torch.Tensor:
    """The last map and the pooled maps of every stage, without the flip."""
    kept: dict[int, torch.Tensor] = {}
    hooks = [
        cnn.network._blocks[i].register_forward_hook(lambda _, __, x, i=i: kept.update({i: x}))  # type: ignore[index]
        for i in STAGES
    ]
    with torch.no_grad():
        last = cnn.network.extract_features(pixels[None].contiguous(memory_format=torch.channels_last))  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    return torch.cat([last, *(adaptive_avg_pool2d(kept[i], last.shape[-2:]) for i in STAGES)], 1)[0].permute(1, 2, 0)


@pytest.mark.slow
def test_each_cell_has_all_stages_averaged_with_the_flip(cnn: FrozenCNN):
    pixels = torch.rand(3, 96, 64) * 2 - 1
    grid = Hypercolumns(cnn).extract(pixels)["grid"].float()
    assert grid.shape == (3, 2, Hypercolumns.width)
    expected = (_columns(cnn, pixels) + _columns(cnn, pixels.flip(2)).flip(1)) / 2
    torch.testing.assert_close(grid, expected, rtol=1e-3, atol=1e-3)  # half precision


def test_features_of_a_flipped_image_are_the_flipped_features(cnn: FrozenCNN):
    pixels, columns = torch.rand(3, 96, 64) * 2 - 1, Hypercolumns(cnn)
    mirrored = columns.extract(pixels.flip(2))["grid"]
    torch.testing.assert_close(mirrored.flip(1), columns.extract(pixels)["grid"])


def test_features_are_standardised_and_classes_are_those_of_the_last_map(cnn: FrozenCNN):
    columns = Hypercolumns(cnn)
    pooled = columns.mean + columns.deviation * torch.tensor([[0.0], [2.0]])
    features, classes = columns.project(pooled)
    torch.testing.assert_close(
        features, torch.tensor([[0.0], [2.0]]).expand(2, Hypercolumns.width), rtol=1e-4, atol=1e-3
    )
    torch.testing.assert_close(classes, cnn.classify(pooled[:, :1280]))


def test_other_standardisation_constants_change_the_cache_name(cnn: FrozenCNN):
    nothing = np.zeros(Hypercolumns.width)
    assert Hypercolumns(cnn, (nothing, nothing + 1)).name != Hypercolumns(cnn).name
