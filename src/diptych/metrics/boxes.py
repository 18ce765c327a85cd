"""Overlap of boxes (x1, y1, x2, y2), and the regions that need no model."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

THRESHOLD = 0.5
"""IoU above which a region is right (accuracy at IoU 0.5)."""
WHOLE = 0.99  # least share of an image that a region of the whole image covers


def ious(boxes: Float[np.ndarray, "n 4"], box: Float[np.ndarray, "4"]) -> Float[np.ndarray, " n"]:
    """Intersection over union of each of `boxes` with `box`, in pixels or in shares of the image's sides alike.

    Differs: ViLBERT's official code counts the pixels at both ends of a side, so that a box is a pixel larger.
    """
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = (high - low).clip(0).prod(1)
    return shared / np.maximum(_areas(boxes) + _areas(box[None]) - shared, 1e-12)


def _areas(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def blind_scores(boxes: Float[np.ndarray, "n 4"], overlap: Float[np.ndarray, " n"]) -> dict[str, float]:
    """What regions chosen without a model score, and the upper bound of any choice: 1 right, 0 wrong.

    "random region" is the expected score, the share of regions that are right. "central region" is the one whose centre
    is nearest to the image's, of equally near ones the largest, without regions of the whole image.

    Args:
        boxes: the regions, as shares of the image's sides.
        overlap: the IoU of each with the true box.
    """
    right, areas = overlap > THRESHOLD, _areas(boxes)
    parts = np.flatnonzero(areas < WHOLE)
    parts = parts if len(parts) else np.arange(len(boxes))
    away = np.linalg.norm((boxes[parts, :2] + boxes[parts, 2:]) / 2 - 0.5, axis=1)
    central = parts[np.lexsort((-areas[parts], away.round(6)))[0]]
    return {
        "best region": float(right.any()),
        "random region": float(right.mean()),
        "largest region": float(right[areas.argmax()]),
        "central region": float(right[central]),
    }
