"""Cubic splines through given points: what SciPy's `interp2d(kind="cubic")` does along each axis of a grid."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def cubic(x: Float[Tensor, " n"], at: Float[Tensor, " m"]) -> Float[Tensor, "m n"]:
    """The matrix that takes values at the points `x` (ascending, at least four) to those of their spline at `at`.

    The spline has no knots at the second point and the last but one ("not-a-knot"). Beyond `x` it keeps its last value.
    Raises ValueError for fewer points.
    """
    if len(x) < 4:
        raise ValueError(f"a cubic spline goes through at least 4 points, not {len(x)}")
    n, eye = len(x), torch.eye(len(x), dtype=torch.float64)
    x, at = x.double(), at.double().clamp(x[0].item(), x[-1].item())
    step = x.diff()
    slope = eye.diff(dim=0) / step[:, None]
    bends = torch.zeros(n, n, dtype=torch.float64)  # the second derivatives: bends @ them = asked @ values
    asked = torch.zeros(n, n, dtype=torch.float64)
    for i in range(1, n - 1):
        bends[i, i - 1 : i + 2] = torch.stack([step[i - 1], 2 * (step[i - 1] + step[i]), step[i]])
        asked[i] = 6 * (slope[i] - slope[i - 1])
    for row, i in ((0, 1), (n - 1, n - 2)):  # the third derivative goes on across these points
        bends[row, i - 1 : i + 2] = torch.stack([step[i], -step[i - 1] - step[i], step[i - 1]])
    second = torch.linalg.solve(bends, asked)
    k = torch.searchsorted(x, at, right=True).clamp(1, n - 1) - 1  # the piece that each point lies in
    h = step[k][:, None]
    b = (at - x[k])[:, None] / h
    a = 1 - b
    return a * eye[k] + b * eye[k + 1] + h * h / 6 * ((a**3 - a) * second[k] + (b**3 - b) * second[k + 1])
