"""Reader of metrics.jsonl: one curve for each logged metric."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from .sections import Curve

# Fields of a row (training/log.py) that count samples or time and are not metrics.
NOT_METRICS = {"step", "samples", "skipped", "seconds", "waiting"}


def read_curves(metrics_jsonl: Path, chance_levels: Mapping[str, tuple[float, str]]) -> list[Curve]:
    """One curve for each metric logged, in the order of first appearance.

    Lines that are not a complete JSON object with a step (left by a run killed while writing) are skipped. Of two
    values for one step the later one counts.

    Args:
        metrics_jsonl: rows as `{"step": 10, "itm": 0.69}`; metrics of held-out data are named `val/itm`.
        chance_levels: metric name (without `val/`) to (chance level, how it is derived).
    """
    series: dict[str, dict[int, float]] = {}
    with open(metrics_jsonl, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            row = _parse_row(line)
            if row is None:
                continue
            for name, value in row.items():
                if name not in NOT_METRICS and (number := _to_float(value)) is not None:
                    series.setdefault(name, {})[row["step"]] = number
    curves = []
    for name, points in series.items():
        chance, chance_name = chance_levels.get(name.removeprefix("val/"), (None, ""))
        steps = sorted(points)
        curves.append(Curve(name, steps, [points[step] for step in steps], chance, chance_name))
    return curves


def _parse_row(line: str) -> dict | None:
    """A row with an integer step in [0, 2**53), or None."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    valid = isinstance(row, dict) and type(row.get("step")) is int and 0 <= row["step"] < 2**53
    return row if valid else None


def _to_float(value: object) -> float | None:
    """A logged number as a float. The log writes NaN as null; any other value that is not a number gives None."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
