"""Charts as inline SVG: contents, hostile names, values that are not finite, and reproducible bytes."""

import math
import re
import subprocess
import sys
import warnings
from importlib.resources import files
from xml.etree import ElementTree

import pytest

from diptych.report import Curve, Histogram
from diptych.report.charts import COLOURS, MAX_POINTS, Chart, downsample, draw_curves, draw_histogram, smooth

NUMBER = r"-?[\d.]+"
HOSTILE = '_$x^2$ <b onclick="a">\'&\\ \u202e\x00\ud800 你好' + "long " * 100


def svg_of(chart: Chart) -> ElementTree.Element:
    assert chart.svg is not None
    return ElementTree.fromstring(chart.svg)


def texts(chart: Chart) -> list[str]:
    return [element.text or "" for element in svg_of(chart).iter("text")]


def lines(chart: Chart, colour: str) -> list[list[tuple[float, float]]]:
    """The points of each path with this colour within the axes (not the legend), in SVG units; y points down."""
    clipped = (path for path in svg_of(chart).iter("path") if "clip-path" in path.attrib)
    paths = [path for path in clipped if f"stroke: var(--{colour})" in path.get("style", "")]
    pairs = [re.findall(rf"[ML] ({NUMBER}) ({NUMBER})", path.get("d", "")) for path in paths]
    return [[(float(x), float(y)) for x, y in points] for points in pairs]


@pytest.mark.slow
def test_training_held_out_and_chance_share_axes_with_labels_and_a_legend():
    curves = [Curve("itm", [0, 50, 100], [1.0, 0.75, 0.5], 0.75, "ln <2>"), Curve("val/itm", [50, 100], [0.8, 0.75])]
    chart = draw_curves(curves)
    assert {"train", "held-out", "chance 0.75", "optimizer step", "itm"} <= set(texts(chart))
    assert chart.note == "Chance level: 0.75 (ln <2>)."
    (line,) = lines(chart, "train")
    (chance,) = lines(chart, "quiet")
    assert line[1][1] == chance[0][1] == chance[1][1]  # the value 0.75, on the line and on the chance level
    assert line[0][1] < line[1][1] < line[2][1]


def test_screen_readers_get_a_summary_and_lines_have_tooltips():
    svg = svg_of(draw_curves([Curve("itm", [1, 2], [0.7, 0.6], 0.693), Curve("val/itm", [2], [0.65])]))
    label = "itm over optimizer steps. train: 0.6 at step 2. held-out: 0.65 at step 2. Chance level: 0.693."
    assert (svg.get("role"), svg.get("aria-label")) == ("img", label)
    assert [title.text for title in svg.iter("title")] == ["train: 0.6 at step 2", "held-out: 0.65 at step 2"]


def test_a_value_that_is_not_finite_leaves_a_gap_and_is_counted():
    chart = draw_curves([Curve("mlm", [1, 2, 3, 4, 5, 6], [4.0, 3.0, math.nan, 2.0, 1e300, -math.inf])])
    path = next(p.get("d", "") for p in svg_of(chart).iter("path") if p.get("d", "").count("M") == 2)
    assert path.count("L") == 1
    assert chart.note == "Not finite at 3 steps, the first of them step 3."
    assert [points[0][0] < points[1][0] for points in lines(chart, "wrong")] == [False] * 3  # vertical marks
    assert "nan" not in "".join(path.get("d", "") for path in svg_of(chart).iter("path"))


@pytest.mark.parametrize("curve", [Curve("itm", [1], [math.inf]), Curve("itm", [], [])])
def test_without_a_finite_value_there_is_a_note_and_no_drawing(curve: Curve):
    assert draw_curves([curve]) == Chart("itm", None, "No finite value was logged.")


@pytest.mark.parametrize(
    "values",
    [(1e99, -1e99), (5e-324, 1.0), (0.0, 0.0), (817364892.654069, 817364892.65407), (-1e100, 1e100), (7.0, math.nan)],
)
def test_extreme_values_are_drawn_within_the_axes(values: tuple[float, float]):
    chart = draw_curves([Curve("itm", [2**53 - 2, 2**53 - 1], values, math.inf)])
    _, _, width, height = map(float, svg_of(chart).get("viewBox", "").split())
    points = [point for path in lines(chart, "train") for point in path]
    assert points and all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_a_long_run_is_downsampled_and_smoothed_over_its_values_as_logged():
    values = [1.0 + 0.5 * (-1) ** (step // 50) for step in range(20_000)]
    chart = draw_curves([Curve("mlm", range(20_000), values)])
    raw, smoothed = lines(chart, "train")
    assert len(downsample(range(20_000), values)[0]) == MAX_POINTS and len(raw) <= MAX_POINTS
    spread = [max(y for _, y in points) - min(y for _, y in points) for points in (raw, smoothed)]
    assert spread[1] < spread[0] / 5
    schedule = draw_curves([Curve("learning_rate", range(99), [step**2 for step in range(99)])])
    assert len(lines(schedule, "train")) == 1, "a learning rate is not smoothed"


def test_smoothing_does_not_delay_a_slope_and_keeps_gaps():
    slope = [float(i) for i in range(60)]
    assert smooth(slope)[10:-10] == pytest.approx(slope[10:-10])
    smoothed = smooth([2.0, 2.0, math.nan, 2.0])
    assert [smoothed[i] for i in (0, 1, 3)] == pytest.approx([2.0] * 3) and math.isnan(smoothed[2])


def test_a_histogram_shows_shares_of_each_series_and_its_threshold():
    chart = draw_histogram(Histogram("cosine", [0, 0.5, 1], {"web": [1, 3], "synthetic": [0, 0]}, 0.25))
    assert {"cosine", "share (%)", "web (n = 4)", "synthetic (n = 0)", "threshold 0.25"} <= set(texts(chart))
    (web,) = lines(chart, "train")
    bottom, first, second = sorted({y for _, y in web}, reverse=True)
    assert (bottom - second) / (bottom - first) == pytest.approx(3)
    left, middle, right = sorted({x for x, _ in web})
    ((threshold, _), _) = lines(chart, "quiet")[0]
    assert threshold == pytest.approx((left + middle) / 2) and right > middle


@pytest.mark.parametrize("hostile", [HOSTILE, "$", "$\\frac$", "", "\n"])
def test_hostile_names_are_drawn_as_text_without_warnings(hostile: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chart = draw_curves([Curve(hostile, [1, 2], [0.7, 0.6], 0.5, hostile), Curve(f"val/{hostile}", [2], [0.6])])
        histogram = draw_histogram(Histogram(hostile, [0, 1], {hostile: [1]}, 0.5))
    start = hostile[:16].replace("\n", "")
    assert any(text.startswith(start) for text in texts(chart))
    assert any(text.startswith(start) and text.endswith("(n = 1)") for text in texts(histogram))
    assert all(element.tag != "b" for element in svg_of(chart).iter())


def test_the_same_chart_is_the_same_markup_whatever_a_user_s_matplotlib_is_set_to():
    import matplotlib

    curves = [Curve("itm", range(100), [0.5] * 100, 0.693, "ln 2"), Curve("val/itm", [2], [0.65])]
    first = draw_curves(curves)
    with matplotlib.rc_context({"axes.linewidth": 9, "svg.fonttype": "path", "legend.fontsize": 30}):
        assert draw_curves(curves) == first
    assert first.svg is not None and "<metadata" not in first.svg  # it would contain the date


def test_colours_are_those_of_the_stylesheet():
    css = files("diptych.report").joinpath("style.css").read_text(encoding="utf-8")
    light, dark = css.split("@media (prefers-color-scheme: dark)")
    for name, colour in COLOURS.items():
        assert f"--{name}: {colour};" in light and f"--{name}: #" in dark
    chart = draw_curves([Curve("itm", [1, 2], [0.7, math.nan], 0.5), Curve("val/itm", [2], [0.65])])
    assert chart.svg is not None and not re.search(r"#[0-9a-f]{6}\b", chart.svg), "every colour is a variable"


@pytest.mark.slow
def test_importing_the_report_does_not_import_matplotlib():
    code = "import sys, diptych.report, diptych.cli; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
