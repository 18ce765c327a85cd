from __future__ import annotations

import math

import pytest
import torch

from diptych.modules.position import sincos_2d


def test_columns_come_before_rows_and_sines_before_cosines():
    found = sincos_2d(8, (2, 3))
    assert found.shape == (1, 7, 8) and not found[0, 0].any()
    row, column = 1, 2
    slow = 10000**-0.5
    expected = [f(place * rate) for place in (column, row) for f in (math.sin, math.cos) for rate in (1.0, slow)]
    torch.testing.assert_close(found[0, 1 + row * 3 + column], torch.tensor(expected))


def test_a_width_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="divisible by 4, not 6"):
        sincos_2d(6, (2, 2))
