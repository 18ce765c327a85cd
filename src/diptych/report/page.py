"""Rendering of sections as one self-contained HTML page: no network access, no script, no file beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from diptych.utils.io import atomic_write

from . import escaping
from .charts import draw_curves, draw_histogram, group_by_metric
from .images import PREDICTED_BOX, TRUE_BOX, data_uri, draw_boxes, heat_overlay, normalize_plan
from .sections import (
    AnswerExample,
    CaptionExample,
    Curve,
    Facts,
    FilteringExample,
    Findings,
    GroundingExample,
    HeatMap,
    Histogram,
    NearDuplicateExample,
    RetrievalExample,
    Section,
    Table,
)

# A second defence after escaping: the browser loads nothing and runs no script, whatever the page contains.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
TILE_SIZE = 200  # pixels of the longer side of a heat map's tile


def write_report(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Writes the page atomically and returns its path. Neighbouring sections of one kind share a heading."""
    page = render_page(title, sections)
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def render_page(title: str, sections: Sequence[Section]) -> str:
    """The page as HTML. Every string is escaped, every image shrunk and embedded."""
    template = environment().get_template("page.html")
    css = escaping.stylesheet(files("diptych.report").joinpath("style.css").read_text(encoding="utf-8"))
    groups = [(KINDS[kind], KINDS[kind].prepare(list(group))) for kind, group in groupby(sections, type)]
    page = template.render(title=title, groups=groups, stylesheet=css, policy=POLICY)
    return escaping.replace_forbidden_characters(page)


@cache
def environment() -> Environment:
    """Jinja2 with autoescape; a name that a template uses and nothing defines is an error."""
    made = Environment(
        loader=PackageLoader("diptych.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "isolate": escaping.isolate,
        "number": escaping.number,
        "percent": escaping.percent,
        "image_url": escaping.image_url,
        "css_url": escaping.css_url,
        "css_ratio": escaping.css_ratio,
        "data_uri": data_uri,
    }
    return made


@dataclass(frozen=True)
class HeatMapTiles:
    """A heat map as its template shows it: tiles of (token, highest share, overlay) on two colour scales."""

    title: str
    distance: float
    image: Image.Image
    size: tuple[int, int]
    highest: float
    own_scale: list[tuple[str, float, Image.Image]]
    shared_scale: list[tuple[str, float, Image.Image]]


def _heat_map_tiles(heat_map: HeatMap) -> HeatMapTiles:
    """Tiles with each token on a scale of its own, and with all tokens on the scale of the highest share."""
    shares = normalize_plan(heat_map.plan)
    peaks = [float(peak) for peak in shares.max(axis=(1, 2))]
    highest = max(peaks, default=0.0)
    width, height = heat_map.image.size
    factor = min(1.0, TILE_SIZE / max(width, height))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))

    def tiles(scales: Sequence[float]) -> list[tuple[str, float, Image.Image]]:
        overlays = [heat_overlay(share, scale, size) for share, scale in zip(shares, scales, strict=True)]
        return list(zip(heat_map.tokens, peaks, overlays, strict=True))

    return HeatMapTiles(
        title=heat_map.title,
        distance=heat_map.distance,
        image=heat_map.image,
        size=size,
        highest=highest,
        own_scale=tiles(peaks),
        shared_scale=tiles([highest] * len(peaks)),
    )


def _with_boxes(example: GroundingExample) -> tuple[GroundingExample, Image.Image]:
    """An example, and its image with the true box (thick, green) and the predicted one (thin, orange)."""
    return example, draw_boxes(example.image, [(example.truth, TRUE_BOX), (example.box, PREDICTED_BOX)])


@dataclass(frozen=True)
class Kind:
    """How one kind of section is shown: its heading, its macro in sections.html, and what the macro is called with."""

    heading: str
    macro: str
    prepare: Callable[[list[Any]], list[Any]] = list


KINDS: dict[type, Kind] = {
    Curve: Kind("Curves", "curves", lambda curves: [draw_curves(group) for group in group_by_metric(curves)]),
    RetrievalExample: Kind("Retrieval", "retrieval"),
    CaptionExample: Kind("Captions", "captions"),
    AnswerExample: Kind("Questions and answers", "answers"),
    GroundingExample: Kind("Phrases and boxes", "grounding", lambda examples: [_with_boxes(one) for one in examples]),
    FilteringExample: Kind("Caption filtering", "filtering"),
    NearDuplicateExample: Kind("Near duplicates", "near_duplicates"),
    Histogram: Kind("Scores", "histograms", lambda histograms: [draw_histogram(one) for one in histograms]),
    HeatMap: Kind("Word-patch alignment", "heat_maps", lambda maps: [_heat_map_tiles(one) for one in maps]),
    Table: Kind("Results", "tables"),
    Facts: Kind("Run", "facts"),
    Findings: Kind("Findings", "findings", lambda sections: [pair for one in sections for pair in one.findings]),
}
