"""Curves read from metrics.jsonl: splits, gaps, incomplete lines, repeated steps."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from diptych.report import Curve, read_curves

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows to metrics.jsonl and returns its path."""

    def write_rows(*rows: str | bytes) -> Path:
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(b"\n".join(row if isinstance(row, bytes) else row.encode() for row in rows))
        return path

    return write_rows


def test_training_and_held_out_rows_become_curves_with_their_chance_level(write: Write):
    row = {"step": 10, "itm": 0.7, "samples": 320, "skipped": 1, "seconds": 4.0, "waiting": 0.1}
    path = write(json.dumps(row), '{"step": 20, "itm": 0.6}', '{"step": 20, "val/itm": 0.65}')
    train, held_out = read_curves(path, {"itm": (math.log(2), "ln 2")})
    assert train == Curve("itm", [10, 20], [0.7, 0.6], math.log(2), "ln 2")
    assert held_out == Curve("val/itm", [20], [0.65], math.log(2), "ln 2")


def test_null_and_nan_are_gaps_and_incomplete_lines_are_skipped(write: Write):
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
    (curve,) = read_curves(path, {})
    assert curve.steps == [1, 2, 3, 4, 5]
    assert [v if math.isfinite(v) else None for v in curve.values] == [7.0, None, None, None, 6.0]


def test_the_later_row_of_a_step_counts(write: Write):
    (curve,) = read_curves(write('{"step": 2, "itm": 1}', '{"step": 1, "itm": 5}', '{"step": 2, "itm": 3}'), {})
    assert (curve.steps, curve.values) == ([1, 2], [5.0, 3.0])


def test_steps_and_values_must_pair():
    with pytest.raises(ValueError, match="curve 'itm': 2 steps but 1 values"):
        Curve("itm", [1, 2], [0.1])
