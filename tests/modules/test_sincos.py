"""Sine-cosine position embeddings."""

from __future__ import annotations

import math

import pytest
import torch

from diptych.modules.position import sincos_2d


def test_columns_come_before_rows_and_sines_before_cosines():
    embeddings = sincos_2d(8, (2, 3))
    assert embeddings.shape == (1, 7, 8) and not embeddings[0, 0].any()
    row, column = 1, 2
    low_rate = 10000**-0.5
    expected = [
        f(coordinate * rate) for coordinate in (column, row) for f in (math.sin, math.cos) for rate in (1.0, low_rate)
    ]
    torch.testing.assert_close(embeddings[0, 1 + row * 3 + column], torch.tensor(expected))


def test_a_dim_not_divisible_by_four_raises_an_error():
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        sincos_2d(6, (2, 2))
