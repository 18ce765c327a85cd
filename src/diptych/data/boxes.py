"""Where to look in a picture when no detector says it: the same boxes for all, at several scales."""

from __future__ import annotations

import numpy as np

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
