"""Silhouettes of the built-in world's objects, as polygons."""

from __future__ import annotations

from functools import cache

import numpy as np

Polygon = np.ndarray  # (points, 2), x to the right and y down


def _arc(x, y, rx, ry, start: int = 0, stop: int = 360, points: int = 24) -> list:
    angle = np.radians(np.linspace(start, stop, points))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1).tolist()


def _spikes(tips: int, inner: float) -> list:
    angle = np.pi * np.arange(2 * tips) / tips - np.pi / 2
    radius = np.where(np.arange(2 * tips) % 2 == 0, 1, inner)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).tolist()


def _heart() -> list:
    t = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1).tolist()


def _petals() -> list:
    turn = np.radians(72 * np.arange(5) - 90)
    return [_arc(0.6 * np.cos(a), 0.6 * np.sin(a), 0.44, 0.44) for a in turn] + [_arc(0, 0, 0.4, 0.4)]


# A silhouette is the union of its polygons. The ring is one polygon along the outer, then back along the inner circle.
_OUTLINES: dict[str, list] = {
    "circle": [_arc(0, 0, 1, 1)],
    "square": [[(-1, -1), (1, -1), (1, 1), (-1, 1)]],
    "triangle": [[(0, -1), (1, 0.8), (-1, 0.8)]],
    "star": [_spikes(5, 0.42)],
    "heart": [_heart()],
    "cross": [
        [(-0.35, -1), (0.35, -1), (0.35, 1), (-0.35, 1)],
        [(-1, -0.35), (1, -0.35), (1, 0.35), (-1, 0.35)],
    ],
    "ring": [_arc(0, 0, 1, 1) + _arc(0, 0, 0.48, 0.48, 360, 0)],
    "moon": [_arc(0, 0, 1, 1, 50, 310) + _arc(0.56, 0, 0.77, 0.77, 275, 85)],
    "diamond": [[(0, -1), (0.68, 0), (0, 1), (-0.68, 0)]],
    "arrow": [[(-1, -0.28), (0.1, -0.28), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.28), (-1, 0.28)]],
    "house": [
        [
            *((-0.75, 1), (-0.75, 0), (-1, 0), (0, -1), (1, 0), (0.75, 0), (0.75, 1)),
            *((0.2, 1), (0.2, 0.4), (-0.2, 0.4), (-0.2, 1)),
        ]
    ],
    "tree": [
        [(0, -1), (0.5, -0.35), (-0.5, -0.35)],
        [(0, -0.7), (0.7, 0.45), (-0.7, 0.45)],
        [(-0.17, 0.4), (0.17, 0.4), (0.17, 1), (-0.17, 1)],
    ],
    "fish": [_arc(-0.25, 0, 0.75, 0.5), [(0.25, 0), (1, -0.55), (0.8, 0), (1, 0.55)]],
    "boat": [
        [(-1, 0.45), (1, 0.45), (0.6, 1), (-0.6, 1)],
        [(-0.08, -1), (0.08, -1), (0.08, 0.5), (-0.08, 0.5)],
        [(0.08, -1), (0.85, 0.25), (0.08, 0.25)],
    ],
    "cup": [
        [(-0.9, -0.8), (0.5, -0.8), (0.35, 0.8), (-0.75, 0.8)],
        _arc(0.45, -0.1, 0.55, 0.5, -90, 90) + _arc(0.45, -0.1, 0.27, 0.24, 90, -90),
    ],
    "flower": _petals(),
}

KINDS = tuple(_OUTLINES)


@cache
def silhouette(kind: str, tilt: int = 0) -> tuple[Polygon, ...]:
    """Polygons of `kind` rotated by `tilt` degrees, with bounding box at (0, 0) and longer side 1."""
    a = np.radians(tilt)
    turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    polygons = [np.asarray(outline, dtype=np.float64) @ turn for outline in _OUTLINES[kind]]
    points = np.concatenate(polygons)
    low, extent = points.min(axis=0), np.ptp(points, axis=0).max()
    return tuple((polygon - low) / extent for polygon in polygons)


def proportions(kind: str, tilt: int = 0) -> tuple[float, float]:
    """Width and height of the rotated silhouette; the longer is 1."""
    width, height = np.concatenate(silhouette(kind, tilt)).max(axis=0)
    return float(width), float(height)
