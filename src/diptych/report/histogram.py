"""How often each value came, as inline SVG."""

from .curves import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, scale, short, ticks
from .inline import text
from .sections import Histogram

COLOURS = ("train", "held-out")
RIGHT = 12


def histograms(group: list[Histogram]) -> str:
    legend = "Each line sums to 100 %; what lies left of a dashed one, or on it, is dropped."
    return f'<p class="quiet">{legend}</p><div class="charts">{"".join(map(_drawn, group))}</div>'


def _drawn(histogram: Histogram) -> str:
    """Outlines of up to two series, each as shares of its own sum; the threshold dashed."""
    edges = histogram.edges
    x = scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    shares = {name: [c / max(sum(counts), 1) for c in counts] for name, counts in histogram.counts.items()}
    high = max((share for values in shares.values() for share in values), default=0) or 1.0
    y = scale(0, 1.06 * high, HEIGHT - BOTTOM, TOP)
    parts = []
    for tick in ticks(0, 1.06 * high):
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{100 * tick:.3g}%</text>')
    for tick in ticks(edges[0], edges[-1], 5):
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{short(tick)}</text>')
    if histogram.threshold is not None:
        parts.append(f'<path class="floor" d="M{x(histogram.threshold):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    legend = []
    for (name, values), kind in zip(shares.items(), COLOURS[: len(shares)], strict=True):
        path = f"M{x(edges[0]):.1f} {y(0):.1f}" + "".join(
            f"V{y(value):.1f}H{x(edge):.1f}" for value, edge in zip(values, edges[1:], strict=True)
        )
        parts.append(f'<path class="line {kind}" d="{path}V{y(0):.1f}"/>')
        legend.append(f'<i class="key {kind}"></i>{text(name)} ({sum(histogram.counts[name]):,})')
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    return f'<figure class="chart"><h3>{text(histogram.title)}</h3><p class="quiet">{" ".join(legend)}</p>{drawing}</figure>'
