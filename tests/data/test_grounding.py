"""Examples of grounding: soft targets by a plain loop, true boxes among the regions, invalid boxes as bad samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diptych.batch import Image, Regions
from diptych.config.data import ImageSettings
from diptych.data.grounding import GroundedExamples, box_shares
from diptych.data.regions.arrays import DetectedImage, fixed_boxes, shares
from diptych.data.regions.frozen_features import RegionLoader
from diptych.data.sources.base import BadSample, Box, DataError, Expression
from diptych.data.tokenizers.tokenizer import Tokenizer
from tests.data.regions.test_frozen_features import Cells, regions

SIZE = 80, 60
OBJECTS: tuple[Box, ...] = ((8, 6, 40, 30), (10, 10, 70, 50), (0, 0, 5, 70))  # the last one leaves the image
IMAGES = ImageSettings(shorter_side=64, patch_size=32, square=True)


class Boxes:
    """Grey images with expressions of the given boxes; all images have OBJECTS."""

    name, split = "boxes", "train"

    def __init__(self, *boxes: Any):
        self.boxes = boxes

    def __len__(self) -> int:
        return len(self.boxes)

    def expression(self, index: int) -> Expression:
        return Expression(index, index, f"phrase {index}", self.boxes[index])

    def objects(self, image: int) -> tuple[Box, ...]:
        return OBJECTS

    def size(self, image: int) -> tuple[int, int]:
        return SIZE

    def image(self, index: int) -> Pillow.Image:
        return Pillow.new("RGB", SIZE, (index, 0, 0))

    def stem(self, index: int) -> str:
        return str(index)

    def file(self, index: int) -> bytes:
        return bytes([index])

    def where(self, index: int) -> str:
        return f"row {index}"


class Detector:
    """Two regions of every image, features of eights; `images` numbers of images."""

    def __init__(self, boxes: Any, value: float):
        self.boxes, self.value = np.array(boxes, dtype=np.float32), value

    def __len__(self) -> int:
        return 9

    def __contains__(self, image: str) -> bool:
        return True

    def load(self, image: str) -> DetectedImage:
        n = len(self.boxes)
        return DetectedImage(np.full((n, 8), self.value, np.float32), shares(self.boxes, *SIZE, image))


def iou(a: Any, b: Any) -> float:
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, wide) * max(0.0, tall)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return shared / (area - shared)


def check_labels(batch_boxes: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, truths: list[Any]) -> None:
    for row, of_image, real, truth in zip(labels, batch_boxes, mask, truths, strict=True):
        for label, box, there in zip(row.tolist(), of_image, real.tolist(), strict=True):
            expected = iou((box[:4] * torch.tensor([*SIZE, *SIZE])).tolist(), truth) if there else 0.0
            assert label == pytest.approx(expected if expected >= 0.5 else 0.0, abs=1e-5)


@pytest.mark.parametrize("proposals,number", [("model", 36), ("joined", 38), ("true", 2)])
def test_models_of_pixels_score_fixed_boxes_or_true_ones(proposals: Any, number: int):
    truths = [OBJECTS[0], (4, 4, 70, 55)]
    examples = GroundedExamples(Boxes(*truths), Tokenizer(), IMAGES, proposals)
    batch = examples.collate([examples.load(i, 0, 0) for i in range(2)], [0, 1], 0, 0)
    assert isinstance(batch.image, Image) and batch.labels["boxes"].shape == (2, number, 5)
    mask = torch.ones(2, number, dtype=torch.bool)
    check_labels(batch.labels["boxes"], mask, batch.labels["regions"], truths)
    assert proposals == "model" or batch.labels["regions"][0].max() == pytest.approx(1)
    if proposals != "true":
        assert torch.equal(batch.labels["boxes"][0, :36], torch.from_numpy(fixed_boxes()))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("proposals", ["model", "joined", "true"])
def test_true_boxes_have_features_of_their_own(whole: bool, proposals: Any):
    loader = regions(Cells(), whole)
    examples = GroundedExamples(Boxes(OBJECTS[0]), Tokenizer(), loader, proposals)
    batch = examples.collate([examples.load(0, 0, 0)], [0], 0, 0)
    assert isinstance(batch.regions, Regions) and batch.regions.has_whole_image == whole
    check_labels(batch.regions.boxes, batch.regions.mask, batch.labels["regions"], [OBJECTS[0]])
    own = loader.stack([loader.load(Boxes(OBJECTS[0]), 0)])
    assert isinstance(own, Regions)
    true = loader.load_boxes(Boxes(OBJECTS[0]), 0, box_shares(OBJECTS[:2], SIZE, ""))
    if proposals == "model":
        assert torch.equal(batch.regions.features, own.features)
    elif proposals == "joined":  # the whole image is the mean of the model's own regions
        n = own.features.shape[1]
        assert torch.allclose(batch.regions.features[:, :n], own.features, atol=1e-6)
        assert torch.equal(batch.regions.features[0, n:], torch.from_numpy(true.features))
    else:
        assert torch.equal(batch.regions.features[0, int(whole) :], torch.from_numpy(true.features))


def test_a_detectors_features_of_true_boxes_come_from_files_of_their_own():
    own, true = (
        RegionLoader(Detector(boxes, v)) for boxes, v in (([[0, 0, 80, 60], [8, 6, 40, 29]], 1), (OBJECTS[:1], 2))
    )
    examples = GroundedExamples(Boxes(OBJECTS[0]), Tokenizer(), own, "joined", true)
    batch = examples.collate([examples.load(0, 0, 0)], [0], 0, 0)
    assert batch.regions is not None and batch.regions.features[0, :, 0].tolist() == [1, 1, 2]
    assert batch.labels["regions"][0].tolist() == pytest.approx([0, 23 / 24, 1])
    with pytest.raises(DataError, match="give true_regions"):
        GroundedExamples(Boxes(OBJECTS[0]), Tokenizer(), own, "true")


@pytest.mark.parametrize(
    "box,message",
    [
        ((8, 6, 90, 30), "outside the image of 80 x 60"),
        ((-3, 6, 9, 30), "outside"),
        ((80.5, 6, 81, 30), "outside"),
        ((9, 6, 8, 30), "x1 < x2"),
        ((8, 6, 8, 30), "x1 < x2"),
        ((math.nan, 6, 8, 30), "finite"),
        ((0, 0, math.inf, 30), "finite"),
    ],
)
def test_an_invalid_box_is_a_bad_sample(box: Box, message: str):
    examples = GroundedExamples(Boxes(OBJECTS[0], box), Tokenizer(), IMAGES)
    with pytest.raises(BadSample, match=message) as error:
        examples.load(1, 0, 0)
    assert error.value.where == "row 1"
    examples.load(0, 0, 0)


def test_a_box_that_leaves_the_image_by_a_pixel_is_cut():
    assert box_shares([(-0.5, 0, 81, 60.2)], SIZE, "")[0] == pytest.approx([0, 0, 1, 1, 1])


def test_draws_do_not_depend_on_the_step():
    examples = GroundedExamples(Boxes(OBJECTS[0]), Tokenizer(), ImageSettings(64, augment=True, square=True))
    first, second = (examples.load(0, 0, step) for step in (1, 2))
    assert np.array_equal(first.image, second.image)
