"""Read metrics.jsonl into curves, and draw curves as inline SVG: no script, no fonts to fetch."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from .sections import Curve

# Counts and clocks of a row (train/log.py); and a set value, which no smoothing should bend.
NOT_CURVES = {"step", "samples", "skipped", "seconds", "waiting"}
EXACT = {"learning_rate"}
WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 44, 54, 14, 26
MOST_POINTS = 400


def curves(metrics_jsonl: Path, floors: Mapping[str, tuple[float, str]]) -> list[Curve]:
    """One curve for each number logged, in the order of first appearance; `floors` maps a name to (value, its name).

    Held-out evaluations carry their split in the name ("val/itm"). A line that isn't a whole JSON object with a step
    (a run killed as it wrote) is passed over; of two values for one step the later counts.
    """
    series: dict[str, dict[int, float]] = {}
    with open(metrics_jsonl, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            row = _row(line)
            if row is None:
                continue
            for name, value in row.items():
                if name not in NOT_CURVES and (number := _number(value)) is not None:
                    series.setdefault(name, {})[row["step"]] = number
    found = []
    for name, points in series.items():
        floor, floor_name = floors.get(name.removeprefix("val/"), (None, ""))
        steps = sorted(points)
        found.append(Curve(name, steps, [points[step] for step in steps], floor, floor_name))
    return found


def _row(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and type(row.get("step")) is int and 0 <= row["step"] < 2**53
    return row if whole else None


def _number(value: object) -> float | None:
    """A logged number; null stands for NaN, and what is no number is None."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) within [low, high]; `low` alone where floats can't tell more."""
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        return [low]
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * round_ for round_ in (1, 2, 2.5, 5, 10) if power * round_ >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def smooth(values: Sequence[float], reach: int = 10) -> list[float]:
    """The mean of the finite values up to `reach` places either side, so that a slope isn't delayed; a gap stays one."""
    smoothed = []
    for place, value in enumerate(values):
        near = [v for v in values[max(0, place - reach) : place + reach + 1] if math.isfinite(v)]
        smoothed.append(sum(near) / len(near) if math.isfinite(value) else math.nan)
    return smoothed


def chart(group: Sequence[Curve]) -> str:
    """The curves of one quantity on one axis: training in ink, raw behind smoothed; held-out beside; floor dashed."""
    name = group[0].name.removeprefix("val/")
    finite = [(s, v) for curve in group for s, v in zip(curve.steps, curve.values, strict=True) if math.isfinite(v)]
    floor = next((c.floor for c in group if c.floor is not None and math.isfinite(c.floor)), None)
    if not finite:
        return f'<figure class="chart"><h3>{escape(name)}</h3><p class="quiet">No finite value was logged.</p></figure>'
    all_steps = [step for curve in group for step in curve.steps]
    x = scale(min(all_steps), max(all_steps), LEFT, WIDTH - RIGHT)
    heights = [value for _, value in finite] + ([floor] if floor is not None else [])
    low, high = min(heights), max(heights)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    y = scale(low, high, HEIGHT - BOTTOM, TOP)

    parts = []
    for tick in ticks(low, high):
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{short(tick)}</text>')
    for tick in ticks(min(all_steps), max(all_steps), 3):
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{short(tick)}</text>')
    if floor is not None:
        label = next((c.floor_name for c in group if c.floor_name), "floor")
        above = y(floor) - 5 if y(floor) > TOP + 12 else y(floor) + 13
        parts.append(f'<path class="floor" d="M{LEFT} {y(floor):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text class="halo" x="{WIDTH - RIGHT}" y="{above:.1f}" text-anchor="end">{escape(label)} = {floor:.4g}</text>'
        )
    ends, lost = [], []
    for curve in group:
        held_out = curve.name.startswith("val/")
        kind = "held-out" if held_out else "train"
        lost += [step for step, value in zip(curve.steps, curve.values, strict=True) if not math.isfinite(value)]
        steps, values = _thin(curve.steps, curve.values)
        line = values
        if not held_out and len(values) >= 30 and name not in EXACT:
            parts.append(f'<path class="line raw" d="{_path(steps, values, x, y)}"/>')
            line = smooth(values)
        last = next(((s, v) for s, v in reversed(list(zip(steps, line, strict=True))) if math.isfinite(v)), None)
        if last is None:
            continue
        hover = f"<title>{escape(curve.name)}: {last[1]:.4g} at step {last[0]}</title>"
        parts.append(f'<path class="line {kind}" d="{_path(steps, line, x, y)}">{hover}</path>')
        if held_out:
            for step, value in zip(steps, values, strict=True):
                if math.isfinite(value) and len(steps) <= 40:
                    hover = f"<title>{escape(curve.name)}: {value:.4g} at step {step}</title>"
                    parts.append(
                        f'<circle class="{kind}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.4">{hover}</circle>'
                    )
        ends.append((y(last[1]), kind, last[1]))
    parts += _end_labels(ends)
    for step in lost[:MOST_POINTS]:
        hover = f"<title>not finite at step {step}</title>"
        parts.append(f'<path class="lost" d="M{x(step):.1f} {HEIGHT - BOTTOM}v-7">{hover}</path>')
    note = f'<p class="quiet">{len(lost)} not finite, the first at step {min(lost)}.</p>' if lost else ""
    drawing = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)} over steps">{"".join(parts)}</svg>'
    )
    return f'<figure class="chart"><h3>{escape(name)}</h3>{drawing}{note}</figure>'


def scale(low: float, high: float, start: float, end: float):
    return lambda value: start + (end - start) * ((value - low) / (high - low) if high > low else 0.5)


def short(number: float) -> str:
    """A tick's label, exact for the round numbers ticks are."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= 10 * unit or (letter == "M" and abs(number) >= unit):
            return f"{number / unit:.6g}{letter}"
    return f"{number:.6g}".replace("e-0", "e-") if abs(number) > 1e-12 else "0"


def _thin(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """At most MOST_POINTS points: each the mean of the finite values in its bin, at the bin's last step."""
    size = math.ceil(len(steps) / MOST_POINTS)
    thin_steps, thin_values = [], []
    for start in range(0, len(steps), size or 1):
        finite = [value for value in values[start : start + size] if math.isfinite(value)]
        thin_steps.append(steps[min(start + size, len(steps)) - 1])
        thin_values.append(sum(finite) / len(finite) if finite else math.nan)
    return thin_steps, thin_values


def _path(steps: Sequence[int], values: Sequence[float], x, y) -> str:
    """An SVG path that lifts the pen over every value that isn't finite."""
    pieces, pen = [], "M"
    for step, value in zip(steps, values, strict=True):
        if math.isfinite(value):
            pieces.append(f"{pen}{x(step):.1f} {y(value):.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(pieces)


def _end_labels(ends: list[tuple[float, str, float]]) -> list[str]:
    """Each line is named where it ends, with its last value; labels that would touch are moved apart."""
    labels, lowest = [], -math.inf
    for height, kind, value in sorted(ends):
        height = max(height, lowest + 25, TOP + 4)
        lowest = height
        start = f'<text class="{kind}" x="{WIDTH - RIGHT + 6}"'
        labels.append(f'{start} y="{height:.1f}">{kind.replace("-", " ")}</text>')
        labels.append(f'{start} y="{height + 12:.1f}">{value:.3g}</text>')
    return labels
