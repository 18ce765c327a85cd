import json
import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from diptych.report import Curve, curves
from diptych.report.curves import MOST_POINTS, chart, smooth, ticks


@pytest.fixture
def write(tmp_path):
    def lines(*rows: str | bytes):
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(b"\n".join(row if isinstance(row, bytes) else row.encode() for row in rows))
        return path

    return lines


def test_training_and_held_out_rows_become_curves_with_their_floor(write):
    row = {
        "step": 10,
        "itm": 0.7,
        "samples": 320,
        "skipped": 1,
        "seconds": 4.0,
        "waiting": 0.1,
    }
    path = write(json.dumps(row), '{"step": 20, "itm": 0.6}', '{"step": 20, "val/itm": 0.65}')
    train, held_out = curves(path, {"itm": (math.log(2), "ln 2")})
    assert train == Curve("itm", [10, 20], [0.7, 0.6], math.log(2), "ln 2")
    assert held_out == Curve("val/itm", [20], [0.65], math.log(2), "ln 2")


def test_null_and_nan_stay_as_gaps_and_broken_lines_are_passed_over(write):
    path = write(
        '{"step": 1, "mlm": 7.0}',
        b"\xff\xfe not text",
        "[1, 2]",
        '{"mlm": 3.0}',
        '{"step": true, "mlm": 3.0}',
        "[" * 100_000,
        '{"step": 2, "mlm": null, "note": "words"}',
        '{"step": 3, "mlm": NaN}',
        '{"step": 4, "mlm": 1' + "0" * 400 + "}",
        '{"step": 5, "mlm": 6.0}',
        '{"step": 6, "ml',
    )
    (curve,) = curves(path, {})
    assert curve.steps == [1, 2, 3, 4, 5]
    assert [v if math.isfinite(v) else None for v in curve.values] == [7.0, None, None, None, 6.0]


def test_the_later_row_of_a_step_counts(write):
    (curve,) = curves(write('{"step": 2, "itm": 1}', '{"step": 1, "itm": 5}', '{"step": 2, "itm": 3}'), {})
    assert (curve.steps, curve.values) == ([1, 2], [5.0, 3.0])


def test_the_pen_is_lifted_over_a_gap_and_the_gap_is_named():
    drawn = chart([Curve("mlm", [1, 2, 3, 4], [4.0, 3.0, math.nan, 2.0])])
    line = re.search(r'class="line train" d="([^"]+)"', drawn)
    assert line is not None and line[1].count("M") == 2 and line[1].count("L") == 1
    assert "1 not finite, the first at step 3" in drawn and "nan" not in drawn.lower()


def test_the_floor_is_drawn_at_its_value_and_named():
    values = [1.0, 0.5]
    drawn = chart([Curve("itm", [0, 100], values, 0.5, "ln <2>")])
    assert "ln &lt;2&gt; = 0.5" in drawn
    floor = re.search(r'class="floor" d="M\S+ ([\d.]+)H', drawn)
    line = re.search(
        r'class="line train" d="M\S+ \S+L\S+ ([\d.]+)"|class="line train" d="M[\d.]+ [\d.]+L[\d.]+ ([\d.]+)"', drawn
    )
    assert floor is not None and line is not None and floor[1] in line.groups()


def test_nothing_finite_is_said_rather_than_drawn():
    assert "No finite value" in chart([Curve("itm", [1], [math.inf])])
    assert "No finite value" in chart([Curve("itm", [], [])])


def test_a_long_run_is_thinned():
    drawn = chart([Curve("val/itm", range(100_000), [1.0] * 100_000)])
    assert drawn.count("L") < MOST_POINTS + 5 and len(drawn) < 20_000


def test_smoothing_does_not_delay_a_slope_and_keeps_gaps():
    slope = [float(i) for i in range(60)]
    assert smooth(slope)[10:-10] == pytest.approx(slope[10:-10])
    smoothed = smooth([2.0, 2.0, math.nan, 2.0])
    assert [smoothed[i] for i in (0, 1, 3)] == pytest.approx([2.0] * 3) and math.isnan(smoothed[2])


def test_ticks_are_labelled_with_their_own_value():
    drawn = chart([Curve("learning_rate", [0, 40_000], [0.0, 8e-5])])
    labels = re.findall(r'text-anchor="(?:end|middle)">([^<]+)<', drawn)
    assert labels == ["0", "2.5e-5", "5e-5", "7.5e-5", "0", "20k", "40k"]


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
@example(817364892.654069, 1e-06)  # narrower than a float's resolution there
def test_ticks_are_few_and_within(low, span):
    high = low + span
    found = ticks(low, high)
    assert len(found) <= 11
    assert all(low - span * 1e-6 <= tick <= high + span * 1e-6 for tick in found)


def test_steps_and_values_must_pair():
    with pytest.raises(ValueError, match="curve 'itm': 2 steps but 1 values"):
        Curve("itm", [1, 2], [0.1])
