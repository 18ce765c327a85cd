from __future__ import annotations

import numpy as np
import pytest

from diptych.metrics.boxes import blind_scores, ious


def test_iou_of_boxes_worked_by_hand():
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [2, 2, 3, 3], [0, 0, 1, 2], [5, 5, 5, 5]], dtype=float)
    assert ious(boxes, np.array([0.0, 0, 2, 2])) == pytest.approx([1, 2 / 6, 0, 0.5, 0])


def test_iou_does_not_depend_on_the_scale_of_either_axis():
    rng = np.random.default_rng(0)
    low, size = rng.random((50, 2)), rng.random((50, 2)) + 0.01
    boxes = np.concatenate([low, low + size], 1)
    scale = np.array([640, 480, 640, 480])
    assert ious(boxes * scale, boxes[0] * scale) == pytest.approx(ious(boxes, boxes[0]))


def test_regions_chosen_blindly():
    boxes = np.array([[0, 0, 1, 1], [0.4, 0.4, 0.6, 0.6], [0.3, 0.3, 0.7, 0.7], [0, 0, 0.5, 0.9]])
    overlap = np.array([0.3, 0.5, 0.9, 0.6])  # 0.5 itself is not right
    assert blind_scores(boxes, overlap) == {
        "best region": 1.0,
        "random region": 0.5,
        "largest region": 0.0,  # the whole image
        "central region": 1.0,  # of the two in the centre the larger
    }
    assert blind_scores(boxes, np.zeros(4)) == dict.fromkeys(blind_scores(boxes, overlap), 0.0)


def test_the_whole_image_is_the_central_region_where_it_is_the_only_one():
    assert blind_scores(np.array([[0.0, 0, 1, 1]]), np.array([0.8]))["central region"] == 1
