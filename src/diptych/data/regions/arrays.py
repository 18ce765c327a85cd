"""Regions of images as arrays: fixed boxes, validation of detector features, and padding to a batch."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diptych.batch import Regions
from diptych.config.validation import preview
from diptych.data.sources.base import BadSample, DataError

SCALES = ((1.0, 1.0, 1), (0.5, 1.0, 3), (1.0, 0.5, 3), (0.6, 0.6, 2), (0.4, 0.4, 3), (0.3, 0.3, 4))
"""Fixed boxes: width and height as shares of the image's, and positions along each side that the box does not fill."""


def fixed_boxes(scales: tuple[tuple[float, float, int], ...] = SCALES) -> np.ndarray:
    """Fixed boxes ``(n, 5)`` (x1, y1, x2, y2, area; see batch.Regions), evenly spaced, the largest first.

    36 by default, a common number of detected regions (Anderson et al. 2018, section 3.1). They do not depend on the
    image's content: a baseline for what a detector's regions add.
    """
    boxes = []
    for width, height, places in scales:
        for top in _starts(height, places):
            for left in _starts(width, places):
                boxes.append((left, top, left + width, top + height, width * height))
    return np.array(boxes, dtype=np.float32)


def _starts(side: float, places: int) -> np.ndarray:
    return np.linspace(0, 1 - side, places if side < 1 else 1)


MAX_REGIONS = 1000
MAX_ROW = 64 * 2**20  # bytes of one image's regions, encoded or unpacked; 100 regions of 2,048 floats take 1 MiB


@dataclass(frozen=True)
class DetectedImage:
    """Regions of one image: features ``(n, f)``, boxes ``(n, 5)`` (see batch.Regions), class probabilities ``(n, c)``
    or None.
    """

    features: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray | None = None


def shares(boxes: np.ndarray, width: int, height: int, where: str) -> np.ndarray:
    """Boxes ``(n, 5)`` from pixel corners: x1, y1, x2, y2 and the area as shares of the image's (ViLBERT, section 3.2).

    Raises BadSample.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise BadSample(f"{where}, boxes", f"expected shape (regions, 4), got {boxes.shape}")
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
        raise BadSample(f"{where}, boxes", "expected finite x1, y1, x2, y2 with x1 <= x2 and y1 <= y2")
    scaled = boxes / np.array([width, height, width, height], dtype=np.float32)
    area = (scaled[:, 2] - scaled[:, 0]) * (scaled[:, 3] - scaled[:, 1])
    return np.concatenate([scaled, area[:, None]], 1).astype(np.float32)


def checked(features: np.ndarray, boxes: np.ndarray, classes: np.ndarray | None, where: str) -> DetectedImage:
    """Regions whose arrays are finite and of the same 1 to MOST_REGIONS regions. Raises BadSample otherwise."""
    n = len(boxes)
    with np.errstate(over="ignore"):  # values too large for float32 become infinite, and are rejected as such
        features = features.astype(np.float32)
        classes = None if classes is None else classes.astype(np.float32)
    for name, array in (("features", features), ("classes", classes)):
        if array is not None and (array.ndim != 2 or len(array) != n or not array.shape[1]):
            raise BadSample(f"{where}, {name}", f"expected one row for each of {n} boxes, got shape {array.shape}")
        if array is not None and not np.isfinite(array).all():
            raise BadSample(f"{where}, {name}", "has values that are not finite")
    if not 1 <= n <= MAX_REGIONS:
        raise BadSample(where, f"expected 1 to {MAX_REGIONS} regions, got {n}")
    return DetectedImage(features, boxes, classes)


def stack_regions(detected: Sequence[DetectedImage]) -> Regions:
    """Batch of regions, zero-padded at the end. Raises DataError if feature dims or numbers of classes differ."""
    dims = {image.features.shape[1] for image in detected}
    classes = {None if image.classes is None else image.classes.shape[1] for image in detected}
    if len(dims) != 1 or len(classes) != 1:
        raise DataError(
            f"regions of one batch differ in feature dim ({sorted(dims)}) or number of classes ({classes}); "
            "use regions of one detector"
        )
    most = max(len(image.boxes) for image in detected)

    def padded(arrays: Sequence[np.ndarray]) -> torch.Tensor:
        canvas = np.zeros((len(arrays), most, arrays[0].shape[1]), dtype=np.float32)
        for row, array in zip(canvas, arrays, strict=True):
            row[: len(array)] = array
        return torch.from_numpy(canvas)

    known = [image.classes for image in detected if image.classes is not None]
    mask = torch.arange(most) < torch.tensor([len(image.boxes) for image in detected])[:, None]
    features, boxes = padded([image.features for image in detected]), padded([image.boxes for image in detected])
    return Regions(features, boxes, mask, padded(known) if known else None)


def positive_integer(cell: Any, where: str) -> int:
    """A count or a size in pixels from digits, an array with one element, or a number. Raises BadSample."""
    value = cell.item() if isinstance(cell, np.ndarray | np.generic) and cell.size == 1 else cell
    if isinstance(value, bytes | str):
        number = int(value) if value.isascii() and value.strip().isdigit() and len(value) < 20 else 0
    elif isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
        number = int(value)
    else:
        number = 0
    if not 0 < number < 2**20:
        raise BadSample(where, f"must be an integer in [1, 2**20): got {preview(value)}")
    return number


def floats(cell: bytes, n: int, where: str) -> np.ndarray:
    """float32 array with `n` rows from base64. Raises BadSample."""
    try:
        data = base64.b64decode(cell, validate=True)
    except binascii.Error as error:
        raise BadSample(where, f"not base64 ({error})") from None
    if not data or len(data) % (4 * n):
        raise BadSample(
            where, f"expected float32 values in {n} rows, got {len(data)} bytes, which do not divide evenly"
        )
    return np.frombuffer(data, dtype="<f4").reshape(n, -1)
