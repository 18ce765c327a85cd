"""Charts of a report, drawn by matplotlib as inline SVG that follows the light or dark colours of the page."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from .escaping import inline_svg, replace_forbidden_characters
from .sections import Curve, Histogram

if TYPE_CHECKING:  # half a second to import: only when a chart is drawn
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of style.css in the light scheme. In the SVG they become var(--name), which the dark scheme redefines.
COLOURS = {
    "ink": "#22211e",
    "quiet": "#6d6a62",
    "rule": "#dcd8cd",
    "train": "#2f5d8a",
    "held-out": "#b4532a",
    "wrong": "#a83a3a",
}
SETTINGS = {
    "text.parse_math": False,  # a caption or file name may contain dollar signs
    "svg.fonttype": "none",  # text stays text: it can be selected, searched and read aloud
    "svg.hashsalt": "diptych",  # the same identifiers in every rendering
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 8,
    "text.color": COLOURS["ink"],
    "axes.facecolor": "none",
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["quiet"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["quiet"],
    "ytick.color": COLOURS["quiet"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.5,
    "lines.markersize": 3,
    "path.simplify": False,  # `downsample` bounds the number of points
    "figure.facecolor": "none",
    "figure.figsize": (3.8, 2.5),  # inches
    "savefig.facecolor": "none",
    "legend.frameon": False,
}
DASHED: dict[str, Any] = {"color": COLOURS["quiet"], "linestyle": (0, (4, 3)), "linewidth": 1}
AXIS_LABELS = {
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm (L2)",
    "samples_per_second": "samples / s",
}
NOT_SMOOTHED = {"learning_rate"}  # follows its schedule exactly
SMOOTHED_FROM = 30  # points
MAX_POINTS = 400
MAX_LABEL = 28  # characters of an axis label; a legend has room for twice as many
LARGEST = 1e100  # in magnitude; values beyond could overflow in axis arithmetic and are drawn as not finite


@dataclass(frozen=True)
class Chart:
    """A drawn chart with its title and a note; without `svg` there was nothing to draw."""

    title: str
    svg: Markup | None
    note: str = ""


def group_by_metric(curves: Sequence[Curve]) -> list[list[Curve]]:
    """Curves of one metric together (`itm` and `val/itm`), in the order of first appearance."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(_metric(curve), []).append(curve)
    return list(groups.values())


def draw_curves(curves: Sequence[Curve]) -> Chart:
    """The chart of one metric over optimizer steps: training, held-out data and the chance level on the same axes."""
    name = _metric(curves[0])
    if not any(map(_is_drawable, (value for curve in curves for value in curve.values))):
        return Chart(name, None, "No finite value was logged.")
    with _style():
        figure, axes = _new_figure("optimizer step", _axis_label(name))
        _format_steps(axes)
        tooltips: dict[str, str] = {}
        lines = [_plot_curve(axes, curve, tooltips) for curve in curves]
        labels = [_split(curve) for curve in curves]
        chance, chance_note = _chance_level(curves)
        if chance is not None:
            lines.append(axes.axhline(chance, **DASHED))
            labels.append(f"chance {chance:.4g}")
        _add_legend(figure, lines, labels)
        gaps = _mark_gaps(axes, curves, tooltips)
        note = " ".join(filter(None, (chance_note, _gap_note(gaps))))
        described = f"{name} over optimizer steps. {'. '.join(map(_summary, curves))}. {note}"
        svg = _to_svg(figure, described.strip(), tooltips)
    return Chart(name, svg, note)


def draw_histogram(histogram: Histogram) -> Chart:
    """Outlines of up to two series, each as shares of its own total, with the threshold as a dashed line."""
    with _style():
        figure, axes = _new_figure(histogram.title, "share (%)")
        lines, labels = [], []
        colours = ("train", "held-out")[: len(histogram.counts)]
        for (name, counts), colour in zip(histogram.counts.items(), colours, strict=True):
            shares = [100 * count / max(sum(counts), 1) for count in counts]
            lines.append(axes.stairs(shares, list(histogram.edges), color=COLOURS[colour], linewidth=1.5))
            labels.append(f"{_shorten(name, 40)} (n = {sum(counts):,})")
        axes.set_xlim(histogram.edges[0], histogram.edges[-1])
        if histogram.threshold is not None:
            lines.append(axes.axvline(histogram.threshold, **DASHED))
            labels.append(f"threshold {histogram.threshold:.4g}")
        _add_legend(figure, lines, labels, columns=1)
        svg = _to_svg(figure, f"Histogram: {histogram.title}. {', '.join(labels)}", {})
    return Chart(histogram.title, svg)


def smooth(values: Sequence[float], reach: int = 10) -> list[float]:
    """The centred moving average over the finite values up to `reach` places either side; gaps stay gaps."""
    smoothed = []
    for place, value in enumerate(values):
        window = [v for v in values[max(0, place - reach) : place + reach + 1] if math.isfinite(v)]
        smoothed.append(sum(window) / len(window) if math.isfinite(value) else math.nan)
    return smoothed


def downsample(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """At most MAX_POINTS points: the mean of the finite values of each bin, at the last step of the bin."""
    size = max(1, math.ceil(len(steps) / MAX_POINTS))
    bin_steps, means = [], []
    for start in range(0, len(steps), size):
        finite = [value for value in values[start : start + size] if math.isfinite(value)]
        bin_steps.append(steps[min(start + size, len(steps)) - 1])
        means.append(sum(finite) / len(finite) if finite else math.nan)
    return bin_steps, means


def _metric(curve: Curve) -> str:
    return curve.name.removeprefix("val/")


def _axis_label(metric: str) -> str:
    """The metric, with its unit if the name implies one. A loss may be in nats or a cosine distance: no unit."""
    return f"{metric} (fraction)" if metric.endswith("accuracy") else AXIS_LABELS.get(metric, metric)


def _split(curve: Curve) -> str:
    return "held-out" if curve.name.startswith("val/") else "train"


def _is_drawable(value: float) -> bool:
    return math.isfinite(value) and abs(value) <= LARGEST


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's defaults and SETTINGS, independent of a user's matplotlibrc.

    Warnings of missing glyphs are ignored: the browser chooses the font of a text.
    """
    from matplotlib import style

    with style.context(["default", SETTINGS]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _new_figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, made without pyplot, which would keep it in memory and choose a GUI backend."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", frameon=False)
    axes = figure.add_subplot()
    axes.set_xlabel(_shorten(x_label))
    axes.set_ylabel(_shorten(y_label))
    return figure, axes


def _format_steps(axes: Axes) -> None:
    """Integer ticks on the x axis, written as 500, 20k or 1.5M; numbers without a common offset on the y axis."""
    from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.6g}"))


def _plot_curve(axes: Axes, curve: Curve, tooltips: dict[str, str]) -> Artist:
    """Draws one curve and returns its line. A long training series is smoothed; its logged values are pale."""
    split = _split(curve)
    values = [value if _is_drawable(value) else math.nan for value in curve.values]
    steps, values = downsample(curve.steps, values)
    marker = "o" if (split == "held-out" and len(steps) <= 40) or len(steps) == 1 else ""
    if split == "train" and len(steps) >= SMOOTHED_FROM and _metric(curve) not in NOT_SMOOTHED:
        axes.plot(steps, values, color=COLOURS["train"], linewidth=0.7, alpha=0.3)
        values = smooth(values)
    (line,) = axes.plot(steps, values, color=COLOURS[split], marker=marker)
    line.set_gid(gid := f"curve-{len(tooltips)}")
    tooltips[gid] = _summary(curve)
    return line


def _mark_gaps(axes: Axes, curves: Sequence[Curve], tooltips: dict[str, str]) -> list[int]:
    """Marks the steps of values that are not finite on the x axis, MAX_POINTS at most, and returns all of them."""
    pairs = (pair for curve in curves for pair in zip(curve.steps, curve.values, strict=True))
    gaps = sorted({step for step, value in pairs if not _is_drawable(value)})
    if gaps:
        shown = gaps[:: math.ceil(len(gaps) / MAX_POINTS)]
        marks = axes.vlines(shown, 0, 0.04, colors=COLOURS["wrong"], transform=axes.get_xaxis_transform())
        marks.set_gid("gaps")
        tooltips["gaps"] = _gap_note(gaps)
    return gaps


def _summary(curve: Curve) -> str:
    """The last value of a curve in words."""
    pairs = zip(reversed(curve.steps), reversed(curve.values), strict=True)
    last = next(((step, value) for step, value in pairs if _is_drawable(value)), None)
    return f"{_split(curve)}: " + (f"{last[1]:.4g} at step {last[0]}" if last else "no finite value")


def _chance_level(curves: Sequence[Curve]) -> tuple[float | None, str]:
    """The chance level to draw, or None, with a sentence that states it."""
    for curve in curves:
        if curve.chance is not None and _is_drawable(curve.chance):
            derived = f" ({curve.chance_name})" if curve.chance_name else ""
            return curve.chance, f"Chance level: {curve.chance:.4g}{derived}."
    return None, ""


def _gap_note(steps: Sequence[int]) -> str:
    return f"Not finite at {len(steps)} steps, the first of them step {steps[0]}." if steps else ""


def _add_legend(figure: Figure, artists: Sequence[Artist], labels: Sequence[str], columns: int = 3) -> None:
    """A legend above the axes."""
    shortened = [_shorten(label, 2 * MAX_LABEL) for label in labels]
    figure.legend(artists, shortened, loc="outside upper left", ncols=columns)


def _shorten(text: str, max_chars: int = MAX_LABEL) -> str:
    """The text as one line of at most `max_chars` characters, without characters that XML forbids."""
    text = replace_forbidden_characters(" ".join(text.split()))
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"


def _to_svg(figure: Figure, description: str, tooltips: dict[str, str]) -> Markup:
    """The figure as inline SVG for a page: colours as CSS variables, the description for screen readers.

    Args:
        figure: the finished figure.
        description: what a screen reader reads instead of the drawing.
        tooltips: texts for the artists that have these identifiers (`Artist.set_gid`).
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    description = replace_forbidden_characters(description)
    for element in root.iter():
        _simplify(element)
        if tooltip := tooltips.get(element.get("id", "")):
            title = ElementTree.Element("title")
            title.text = replace_forbidden_characters(tooltip)
            element.insert(0, title)
    _drop_unused_ids(root)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update({"class": "plot", "role": "img", "aria-label": description})
    return inline_svg(root)


def _simplify(element: ElementTree.Element) -> None:
    """Drops namespaces, metadata and stylesheets (they would apply to the whole page); colours become variables."""
    element.tag = _local_name(element.tag)
    for child in list(element):
        if _local_name(child.tag) in ("metadata", "style"):
            element.remove(child)
    element.attrib = {_local_name(name): value for name, value in element.attrib.items()}
    if style := element.get("style"):
        element.set("style", re.sub("#[0-9a-f]{6}", _to_variable, style))


def _to_variable(colour: re.Match[str]) -> str:
    name = next((name for name, value in COLOURS.items() if value == colour[0]), None)
    return f"var(--{name})" if name else colour[0]


def _local_name(name: str) -> str:
    return name.rpartition("}")[2]


def _drop_unused_ids(root: ElementTree.Element) -> None:
    """Drops identifiers without a reference: they would be duplicates in a page with several charts."""
    values = [value for element in root.iter() for name, value in element.attrib.items() if name != "id"]
    used = {name for value in values for name in re.findall(r"#([\w.-]+)", value)}
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
