"""Frozen features in place of pixels: a CNN's grid, its mean in fixed boxes, a detector's regions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diptych.batch import Image, Regions
from diptych.config.data import CLIP_MEAN, CLIP_STD, ImageSettings
from diptych.data.examples import ImageExamples, PairExamples
from diptych.data.images.loading import ImageLoader
from diptych.data.regions.arrays import fixed_boxes
from diptych.data.regions.files import RegionFolder
from diptych.data.regions.frozen_features import (
    BoxLoader,
    ExtractedFeatures,
    FeatureKeys,
    GridLoader,
    RegionLoader,
    pooled,
)
from diptych.data.sources.ablations import ShuffledCaptions
from diptych.data.sources.base import BadSample, Captioned
from diptych.data.sources.captions import CaptionedFiles, open_captions
from diptych.data.synthetic import Scenes
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.utils.feature_cache import Arrays, DiskCache, MemoryCache
from tests.data.tiny_data import Colours

SETTINGS = ImageSettings(shorter_side=32, patch_size=16, augment=True)
BOXES = np.array([[0, 0, 1, 1, 1], [0, 0, 0.5, 1, 0.5]], dtype=np.float32)


class Cells:
    """A "network" whose feature map is each 16 × 16 cell's mean colour. Counts its calls."""

    def __init__(self) -> None:
        self.num_extracted = 0

    def __call__(self, pixels: Tensor) -> Arrays:
        self.num_extracted += 1
        return {"grid": torch.nn.functional.avg_pool2d(pixels[None], 16)[0].permute(1, 2, 0).half()}


def grids(extractor: Cells, store: DiskCache | None = None, name: bytes = b"cells") -> GridLoader:
    return GridLoader(ExtractedFeatures(extractor, name, SETTINGS, MemoryCache(disk=store)))


def regions(extractor: Cells, whole: bool = False) -> BoxLoader:
    extracted = ExtractedFeatures(extractor, b"cells", SETTINGS, MemoryCache())
    return BoxLoader(extracted, BOXES, lambda features: (features, features[..., :2].softmax(-1)), MemoryCache(), whole)


def shade(image: int) -> float:
    return image / 127.5 - 1


def pairs(shows: ImageLoader, source: Captioned, matching: float = 0.0) -> Any:
    examples = PairExamples(source, Tokenizer(16), shows, matching)
    ids = list(range(len(examples)))
    return examples.collate([examples.load(i, 0, 0) for i in ids], ids, 0, 0)


def test_a_grid_is_an_image_of_features():
    extractor = Cells()
    batch = pairs(grids(extractor), Colours(4))
    assert isinstance(batch.image, Image) and batch.regions is None and batch.image.pixels.shape == (8, 3, 2, 2)
    assert batch.image.pixels[:, 0, 1, 1].tolist() == pytest.approx([shade(i // 2) for i in range(8)], abs=1e-3)
    assert batch.image.sizes.tolist() == [[2, 2]] * 8 and extractor.num_extracted == 4, "captions share it"


def test_grids_of_several_sizes_are_padded_at_the_right_and_bottom():
    shows = grids(Cells())
    image = shows.stack([np.ones((2, 1, 3), np.float16), np.full((1, 3, 3), 2, np.float16)])
    assert image.sizes.tolist() == [[2, 1], [1, 3]]
    assert image.pixels[:, 0].tolist() == [[[1, 0, 0], [1, 0, 0]], [[2, 2, 2], [0, 0, 0]]]


def test_regions_have_their_own_field_and_matching_uses_other_images():
    batch = pairs(regions(Cells()), Colours(4), matching=0.5)
    own = batch.regions
    assert isinstance(own, Regions) and batch.image is None and not own.has_whole_image
    assert own.features.shape == (8, 2, 3) and own.boxes[3].tolist() == BOXES.tolist()
    assert own.features[:, 1, 0].tolist() == pytest.approx([shade(i // 2) for i in range(8)], abs=1e-3)
    assert own.classes is not None and torch.allclose(own.classes.sum(-1), torch.ones(8, 2), atol=1e-2)
    matching = batch.matching.visual
    same = (matching.features == own.features).flatten(1).all(1)
    assert torch.equal(same, batch.matching.matched) and 0 < int(same.sum()) < 8


def test_vilberts_regions_start_with_the_whole_image():
    whole = pairs(regions(Cells(), whole=True), Colours(2)).regions
    assert whole.has_whole_image and whole.boxes[0, 0].tolist() == [0, 0, 1, 1, 1] and whole.features.shape == (4, 3, 3)


def test_images_without_captions_are_also_mirrored():
    class Halves(Colours):
        def image(self, index: int):
            image = super().image(index)
            image.paste((200, 0, 0), (0, 0, image.width // 2, image.height))
            return image

    shows = grids(Cells())
    examples = ImageExamples(Halves(2), shows)
    loaded = [examples.load(i, 0, 0) for i in (2, 3)]
    (plain, _), (mirrored, _) = loaded
    assert np.array_equal(plain[:, ::-1], mirrored) and not np.array_equal(plain, mirrored)
    batch = examples.collate(loaded, [2, 3], 0, 0)
    assert batch.image is not None and batch.image_keys is None


def test_images_without_captions_have_the_keys_of_their_features(karpathy: Path):
    """The batch has the key of both an image and its mirror image, by the file, as in ExtractedFeatures."""
    source, features = (
        open_captions(str(karpathy), "train"),
        ExtractedFeatures(Cells(), b"cells", SETTINGS, MemoryCache()),
    )
    examples = ImageExamples(source, replace(SETTINGS, augment=False), FeatureKeys(b"cells", SETTINGS))
    batch = examples.collate([examples.load(i, 0, 0) for i in (2, 3, 4)], [2, 3, 4], 0, 0)
    assert batch.image_keys is not None
    names = [features.names.of(source, i) for i in (1, 2)]
    assert list(batch.image_keys.items()) == [(names[0], False), (names[0], True), (names[1], False)]
    assert FeatureKeys(b"other", SETTINGS).of(source, 1) != names[0] != names[1]


def test_images_without_captions_are_augmented_differently_at_each_step():
    examples = ImageExamples(
        Scenes("train", 2), ImageSettings(shorter_side=32, patch_size=16, square=True, augment=True)
    )
    first, again, later = (examples.load(0, 0, step)[0] for step in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, later)


def test_features_are_cached_by_file_and_extracted_once_for_all_runs(
    karpathy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Cached features are used without decoding, with any captions, but not for another network or size."""
    source, first = open_captions(str(karpathy), "train"), Cells()
    store = DiskCache(tmp_path / "cache")
    extracted = [grids(first, store).load(source, i) for i in range(len(source))]
    assert 0 < first.num_extracted <= len(source)
    later = Cells()
    monkeypatch.setattr(CaptionedFiles, "image", lambda *_: pytest.fail("decoded"))
    again = grids(later, store)
    assert all(np.array_equal(again.load(source, i), grid) for i, grid in enumerate(extracted))
    shuffled = ShuffledCaptions(source)
    assert np.array_equal(again.load(shuffled, 1), extracted[1]) and later.num_extracted == 0
    monkeypatch.undo()
    grids(later, store, b"another").load(source, 0)
    GridLoader(
        ExtractedFeatures(later, b"cells", ImageSettings(shorter_side=48, patch_size=16), MemoryCache(disk=store))
    ).load(source, 0)
    assert later.num_extracted == 2


def test_a_frozen_network_gets_its_own_normalisation_whatever_the_models_is(karpathy: Path, tmp_path: Path):
    source, store = open_captions(str(karpathy), "train"), DiskCache(tmp_path / "cache")
    expected, later = grids(Cells(), store).load(source, 0), Cells()
    for memory in (MemoryCache(disk=store), MemoryCache()):
        features = ExtractedFeatures(later, b"cells", replace(SETTINGS, mean=CLIP_MEAN, std=CLIP_STD), memory)
        assert np.array_equal(GridLoader(features).load(source, 0), expected)
    assert later.num_extracted == 1, "stored features are read from the cache"


def test_a_bad_image_is_a_bad_sample():
    with pytest.raises(BadSample, match="image 1: broken"):
        grids(Cells()).load(Colours(3, bad=frozenset({1})), 1)


def test_cells_are_weighted_by_the_fraction_that_a_box_covers():
    grid = torch.tensor([[[0.0], [4.0], [8.0]], [[1.0], [5.0], [9.0]]])
    boxes = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1 / 3, 0.5, 0], [0, 0, 0.5, 0.75, 0], [0.9, 0.9, 1, 1, 0]])
    # the third box: columns weigh 1 and 0.5, rows 1 and 0.5
    third = (0 * 1 + 4 * 0.5 + 1 * 0.5 + 5 * 0.25) / (1 + 0.5 + 0.5 + 0.25)
    assert pooled(grid, boxes).squeeze(1).tolist() == pytest.approx([4.5, 0, third, 9], abs=1e-5)


def test_the_fixed_boxes_cover_the_image_at_several_scales():
    boxes = fixed_boxes()
    assert boxes.shape == (36, 5) and boxes[0].tolist() == [0, 0, 1, 1, 1]
    corners, areas = boxes[:, :4], (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert (corners >= 0).all() and (corners <= 1 + 1e-6).all() and (boxes[:, 2:4] > boxes[:, :2]).all()
    np.testing.assert_allclose(areas, boxes[:, 4], rtol=1e-5)
    assert len(np.unique(boxes.round(4), axis=0)) == 36 and len(np.unique(boxes[:, 4].round(4))) == 5
    covered = np.zeros((30, 30), dtype=int)
    for left, top, right, bottom, _ in boxes[-16:]:
        covered[round(top * 30) : round(bottom * 30), round(left * 30) : round(right * 30)] += 1
    assert covered.min() >= 1, "the smallest boxes cover the whole image"


def test_a_detectors_regions_are_looked_up_by_the_images_name(karpathy: Path, tmp_path: Path):
    source = open_captions(str(karpathy), "train")
    stem = source.stem(0)  # type: ignore[attr-defined]
    number = stem.lstrip("abcdefghijklmnopqrstuvwxyz_0") or "0"
    for i, name in enumerate({stem, number}):
        (tmp_path / str(i)).mkdir()
        np.savez(
            tmp_path / str(i) / f"{name}.npz",
            features=np.eye(2),
            boxes=np.eye(4)[:2] * 0 + [0, 0, 9, 9],
            image_w=10,
            image_h=10,
        )
        shows = RegionLoader(RegionFolder(tmp_path / str(i)), whole=True)
        batch = shows.stack([shows.load(source, 0)])
        assert batch.has_whole_image and batch.features.shape == (1, 3, 2)
        with pytest.raises(BadSample, match="no regions of this image"):
            shows.load(source, 1)
