"""Cubic splines and the resizing of relative position tables, compared with SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diptych.modules.position import cubic, resize_table

interpolate = pytest.importorskip("scipy.interpolate")


@pytest.mark.parametrize("n", [4, 5, 9, 27])
def test_a_spline_equals_scipys(n: int):
    generator = np.random.default_rng(n)
    x, y = np.sort(generator.normal(size=n)), generator.normal(size=n)
    at = np.concatenate([np.linspace(x[0], x[-1], 50), x])
    ours = cubic(torch.from_numpy(x), torch.from_numpy(at)) @ torch.from_numpy(y)
    np.testing.assert_allclose(ours.numpy(), interpolate.CubicSpline(x, y)(at), atol=1e-9 * np.abs(y).max() * 1e3)


def test_a_spline_is_constant_beyond_its_points():
    x = torch.arange(5.0)
    assert torch.equal(cubic(x, torch.tensor([-1.0, 9.0])), torch.eye(5, dtype=torch.float64)[[0, 4]])
    with pytest.raises(ValueError, match="at least 4 points, got 3"):
        cubic(x[:3], x)


def official(table: np.ndarray, side: int, new: int, others: int) -> np.ndarray:
    """The official rule (VLMo's and BEiT's code), with SciPy's replacement of its removed `interp2d`."""
    left, right, half, reach = 1.01, 1.5, side - 1, new - 1
    ratio = 0.0
    while right - left > 1e-6:
        ratio = (left + right) / 2
        if sum(ratio**i for i in range(half)) > reach:
            right = ratio
        else:
            left = ratio
    points = [sum(ratio**i for i in range(k)) for k in range(1, half + 1)]
    x = [-p for p in reversed(points)] + [0.0] + points
    at = np.clip(np.arange(-reach, reach + 1, dtype=float), x[0], x[-1])
    rows = len(table) - others
    columns = []
    for bias in table[:rows].T:
        spline = interpolate.RectBivariateSpline(x, x, bias.reshape(2 * side - 1, -1), kx=3, ky=3, s=0)
        columns.append(spline(at, at).reshape(-1))
    return np.concatenate([np.stack(columns, 1), table[rows:]])


@pytest.mark.parametrize(("side", "new"), [(14, 24), (14, 30), (4, 6), (6, 4)])
def test_a_table_is_resized_by_the_official_rule(side: int, new: int):
    others = 5 + 2 * 7
    table = torch.randn((2 * side - 1) ** 2 + others, 3, generator=torch.Generator().manual_seed(side))
    ours = resize_table(table, (side, side), (new, new))
    assert ours.shape == ((2 * new - 1) ** 2 + others, 3) and ours.dtype == table.dtype
    expected = official(table.double().numpy(), side, new, others)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)
    assert torch.equal(resize_table(table, (side, side), (side, side)), table)


def test_each_axis_is_resized_independently():
    table = torch.randn(7 * 9 + 4, 2, generator=torch.Generator().manual_seed(0))
    resized = resize_table(table, (4, 5), (4, 7))
    assert resized.shape == (7 * 13 + 4, 2) and torch.equal(resized[-4:], table[-4:])
    middle = resized[: 7 * 13].unflatten(0, (7, 13))[:, 6]
    torch.testing.assert_close(middle, table[: 7 * 9].unflatten(0, (7, 9))[:, 4])
    with pytest.raises(ValueError, match="at least 4 points"):
        resize_table(table[: 3 * 9], (2, 5), (4, 5))
