"""The nearest images by frozen features: those of a direct computation, without copies and unreadable images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from diptych.batch import Image, Regions
from diptych.data.images.loading import ImageSource, Random
from diptych.data.nearest_images import mean_features, nearest_images, nearest_rows
from diptych.data.sources.base import BadSample
from diptych.utils.feature_cache import MemoryCache
from tests.data.tiny_data import Colours


class Located:
    """A loader of one region per image, whose two features are given; it counts what it loads."""

    def __init__(self, *features: tuple[float, float], bad: frozenset[int] = frozenset()):
        self.features, self.bad, self.loads = torch.tensor(features), bad, 0

    def load(self, source: ImageSource, index: int, random: Random | None) -> torch.Tensor:
        self.loads += 1
        if index in self.bad:
            raise BadSample(f"image {index}", "broken")
        return self.features[index]

    def stack(self, loaded: Sequence[Any]) -> Regions:
        n = len(loaded)
        return Regions(torch.stack(list(loaded))[:, None], torch.zeros(n, 1, 5), torch.ones(n, 1, dtype=torch.bool))


class Copied(Colours):
    """Images of which the last is a copy of the first."""

    def pictures(self) -> Sequence[int]:
        return [*range(self.n - 1), 0]


ANGLES = (0.0, 0.2, 3.0, 3.3, 1.6)
CIRCLE = tuple((float(np.cos(angle)), float(np.sin(angle))) for angle in ANGLES)


def test_nearest_images_are_in_order_of_their_cosine():
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)) + 3
    centred = torch.nn.functional.normalize(features - features.mean(0), dim=1)
    order = (centred @ centred.T).fill_diagonal_(-2).argsort(1, descending=True)
    assert nearest_rows(features, 7).tolist() == order[:, :7].tolist()
    assert nearest_rows(features, 99).tolist() == order[:, :39].tolist()


def test_blocks_do_not_change_the_nearest_images(monkeypatch: pytest.MonkeyPatch):
    features = torch.randn(23, 8, generator=torch.Generator().manual_seed(1))
    whole = nearest_rows(features, 5)
    monkeypatch.setattr("diptych.data.nearest_images.BLOCK", 4)
    assert torch.equal(nearest_rows(features, 5), whole)


def test_each_image_has_its_neighbours_on_the_circle_first():
    nearest = nearest_images(Colours(5), Located(*CIRCLE), 2, MemoryCache(1e6))
    assert nearest[:4, 0].tolist() == [1, 0, 3, 2]
    assert all(index not in row for index, row in enumerate(nearest.tolist()))


def test_copies_and_unreadable_images_are_neighbours_of_none():
    loader = Located(*CIRCLE[:4], CIRCLE[0], bad=frozenset({2}))
    nearest = nearest_images(Copied(5), loader, 3, MemoryCache(1e6))
    assert loader.loads == 4, "the copy is not loaded again"
    assert nearest[4].tolist() == nearest[0].tolist() and set(nearest[0].tolist()) == {1, 3, -1}
    assert nearest[2].tolist() == [-1, -1, -1]
    assert not {2, 4} & set(nearest.flatten().tolist())


def test_the_result_is_computed_once_for_the_same_images_and_features():
    cache, loader = MemoryCache(1e6), Located(*CIRCLE)
    first = nearest_images(Colours(5), loader, 2, cache, b"a")
    assert nearest_images(Colours(5), loader, 2, cache, b"a").tolist() == first.tolist() and loader.loads == 5
    nearest_images(Colours(5), loader, 2, cache, b"b")
    nearest_images(Colours(5), loader, 3, cache, b"a")
    assert loader.loads == 15


def test_the_mean_leaves_out_padding_and_the_whole_image():
    features = torch.tensor([[[1.0], [3.0], [9.0]], [[5.0], [7.0], [9.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    regions = Regions(features, torch.zeros(2, 3, 5), mask)
    assert mean_features(regions).flatten().tolist() == [2.0, 7.0]
    assert mean_features(regions.with_whole_image()).flatten().tolist() == [2.0, 7.0]
    pixels = torch.arange(12.0).view(1, 2, 2, 3)
    assert mean_features(Image(pixels, torch.tensor([[2, 2]]))).tolist() == [[2.0, 8.0]]
