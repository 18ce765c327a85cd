"""Where to look in a picture when no detector says it: the same boxes for all, at several scales.

One image's regions as arrays, and many of them as a batch.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diptych.batch import Regions
from diptych.data.sources.base import BadSample, DataError

SCALES = ((1.0, 1.0, 1), (0.5, 1.0, 3), (1.0, 0.5, 3), (0.6, 0.6, 2), (0.4, 0.4, 3), (0.3, 0.3, 4))
"""Width and height as shares of the picture's, and how many places there are along each side that is not whole."""


def fixed_boxes(scales: tuple[tuple[float, float, int], ...] = SCALES) -> np.ndarray:
    """Boxes (n × 5, see inputs.Regions) that cover every picture alike, evenly spaced and the largest first; 36 by default,
    as many as detectors are commonly asked for (Anderson et al. 2018, section 3.1).

    They know nothing of what is in a picture: a floor for what a detector's regions add.
    """
    found = []
    for width, height, places in scales:
        for top in _starts(height, places):
            for left in _starts(width, places):
                found.append((left, top, left + width, top + height, width * height))
    return np.array(found, dtype=np.float32)


def _starts(side: float, places: int) -> np.ndarray:
    return np.linspace(0, 1 - side, places if side < 1 else 1)


MOST_REGIONS = 1000
MOST_ROW = 64 * 2**20  # bytes of one image's regions, as text or unpacked; 100 regions of 2,048 numbers are 1 MiB


@dataclass(frozen=True)
class DetectedImage:
    """One image's regions: features (n × f), boxes (n × 5, see inputs.Regions), and class probabilities (n × c) or None."""

    features: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray | None = None


def shares(boxes: np.ndarray, width: int, height: int, where: str) -> np.ndarray:
    """Corners in pixels as shares of the image, and the share of its area (ViLBERT, section 3.2). Raises BadSample."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise BadSample(f"{where}, boxes", f"are {boxes.shape}, not (regions, 4)")
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
        raise BadSample(f"{where}, boxes", "not finite, or ending before they begin; boxes are x1, y1, x2, y2")
    scaled = boxes / np.array([width, height, width, height], dtype=np.float32)
    area = (scaled[:, 2] - scaled[:, 0]) * (scaled[:, 3] - scaled[:, 1])
    return np.concatenate([scaled, area[:, None]], 1).astype(np.float32)


def checked(features: np.ndarray, boxes: np.ndarray, classes: np.ndarray | None, where: str) -> DetectedImage:
    """Raises BadSample unless all are of the same regions, at least one, and finite."""
    n = len(boxes)
    with np.errstate(over="ignore"):  # what is too large for a float becomes infinite, and is refused so
        features = features.astype(np.float32)
        classes = None if classes is None else classes.astype(np.float32)
    for name, array in (("features", features), ("classes", classes)):
        if array is not None and (array.ndim != 2 or len(array) != n or not array.shape[1]):
            raise BadSample(f"{where}, {name}", f"are {array.shape}, where there are {n} boxes")
        if array is not None and not np.isfinite(array).all():
            raise BadSample(f"{where}, {name}", "not finite")
    if not 1 <= n <= MOST_REGIONS:
        raise BadSample(where, f"{n} regions, where there are 1 to {MOST_REGIONS}")
    return DetectedImage(features, boxes, classes)


def stack_regions(detected: Sequence[DetectedImage]) -> Regions:
    """A batch, padded behind. Raises DataError where features are of several widths, or some lack classes."""
    widths = {one.features.shape[1] for one in detected}
    classes = {None if one.classes is None else one.classes.shape[1] for one in detected}
    if len(widths) != 1 or len(classes) != 1:
        raise DataError(
            f"regions of one batch have features of {sorted(widths)} and classes of {classes}; use one detector's"
        )
    most = max(len(one.boxes) for one in detected)

    def padded(arrays: Sequence[np.ndarray]) -> torch.Tensor:
        canvas = np.zeros((len(arrays), most, arrays[0].shape[1]), dtype=np.float32)
        for row, array in zip(canvas, arrays, strict=True):
            row[: len(array)] = array
        return torch.from_numpy(canvas)

    known = [one.classes for one in detected if one.classes is not None]
    real = torch.arange(most) < torch.tensor([len(one.boxes) for one in detected])[:, None]
    features, boxes = padded([one.features for one in detected]), padded([one.boxes for one in detected])
    return Regions(features, boxes, real, padded(known) if known else None)


def whole_number(cell: Any, where: str) -> int:
    """A count or a side in pixels, from a cell of a table (digits), an array of one, or a number without a fraction. Raises
    BadSample.
    """
    value = cell.item() if isinstance(cell, np.ndarray | np.generic) and cell.size == 1 else cell
    if isinstance(value, bytes | str):
        number = int(value) if value.isascii() and value.strip().isdigit() and len(value) < 20 else 0
    elif isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
        number = int(value)
    else:
        number = 0
    if not 0 < number < 2**20:
        raise BadSample(where, "is no whole number above 0, or beyond all measure")
    return number


def floats(cell: bytes, n: int, where: str) -> np.ndarray:
    """An array of n rows, from base64 of float32. Raises BadSample."""
    try:
        data = base64.b64decode(cell, validate=True)
    except binascii.Error as error:
        raise BadSample(where, f"not base64 ({error})") from None
    if not data or len(data) % (4 * n):
        raise BadSample(where, f"{len(data)} bytes do not divide into {n} rows of float32")
    return np.frombuffer(data, dtype="<f4").reshape(n, -1)
