"""Sections to one HTML page that needs nothing else: no network, no script, no file beside it."""

from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from diptych.utils.io import atomic_write

from . import inline
from .alike import alike
from .captioned import captioned
from .curves import chart
from .histogram import histograms
from .judged import judged
from .pictures import data_uri, overlay, shares
from .sections import (
    AlikeExample,
    AnswerExample,
    CaptionExample,
    Curve,
    Facts,
    Findings,
    HeatMap,
    Histogram,
    JudgedExample,
    RetrievalExample,
    Section,
    Table,
)
from .style import STYLE

# Nothing may load or run, whatever a caption contains: escaping is the lock, this is the bolt.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page whole or not at all. Neighbouring sections of one kind share a heading.

    Every string is escaped, every picture shrunk and embedded.
    """
    body = "\n".join(
        f"<section><h2>{HEADINGS[kind]}</h2>{RENDER[kind](list(group))}</section>"
        for kind, group in groupby(sections, type)
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n"
        f"<body><main><header><p>Diptych</p><h1>{escape(title)}</h1></header>\n{body}\n</main></body></html>\n"
    )
    with atomic_write(path) as partial:
        partial.write_bytes(page.encode("utf-8", errors="replace"))
    return path


def _curves(group: list[Curve]) -> str:
    """One chart a quantity: `itm` and `val/itm` together."""
    charts: dict[str, list[Curve]] = {}
    for curve in group:
        charts.setdefault(curve.name.removeprefix("val/"), []).append(curve)
    legend = "Over optimizer steps. Long training series are smoothed, the raw values pale behind them. "
    legend += "A dashed line is the floor: what a model that has learned nothing reaches."
    return f'<p class="quiet">{legend}</p><div class="charts">{"".join(map(chart, charts.values()))}</div>'


def _retrieval(group: list[RetrievalExample]) -> str:
    examples = []
    for example in group:
        results = "".join(
            f'<li class="{"right" if correct else "wrong"}">{inline.item(item)}'
            f"<small>{'✓' if correct else '✗'} {inline.number(score)}</small></li>"
            for item, score, correct in example.results
        )
        kind = "texts" if all(isinstance(item, str) for item, _, _ in example.results) else "pictures"
        examples.append(
            f'<article class="retrieval"><div class="query">{inline.item(example.query)}</div>'
            f'<ol class="{kind}">{results}</ol></article>'
        )
    legend = "The query, then what it retrieved, best first; ✓ belongs to the query."
    return f'<p class="quiet">{legend}</p>{"".join(examples)}'


def _answers(group: list[AnswerExample]) -> str:
    examples = []
    for example in group:
        bars = "".join(
            f'<li><span>{inline.text(answer)}</span><i style="width:{inline.percent(probability)}"></i>'
            f"<small>{inline.percent(probability)}</small></li>"
            for answer, probability in example.answers[:3]
        )
        right = "right" if example.score >= 0.5 else "wrong"
        verdict = f"{'✓' if right == 'right' else '✗'} truth: {inline.text(example.truth)} · score {inline.number(example.score)}"
        examples.append(
            f'<article class="answer {right}">{inline.picture(example.picture)}<div><p class="words">{inline.text(example.question)}</p>'
            f'<ul>{bars}</ul><p class="verdict">{verdict}</p></div></article>'
        )
    return f'<div class="answers">{"".join(examples)}</div>'


def _heat_maps(group: list[HeatMap]) -> str:
    explained = (
        "The optimal-transport plan from each word to the picture's patches. Each word's mass is divided by its sum, "
        "so it shows where the word goes; colour and opacity rise with the share, up to the word's own peak, which stands "
        "beneath it. A word spread evenly lights the whole picture and has a low peak."
    )
    return f'<p class="quiet">{explained}</p>' + "".join(map(_heat_map, group))


def _heat_map(heat: HeatMap) -> str:
    plan = shares(heat.plan)
    peaks = plan.max(axis=(1, 2))
    shrink = min(1.0, 200 / max(heat.picture.size))
    size = (max(1, round(heat.picture.width * shrink)), max(1, round(heat.picture.height * shrink)))

    def tiles(scales: Sequence[float]) -> str:
        drawn = (
            f'<figure><div class="photo" style="aspect-ratio:{size[0]}/{size[1]};background-image:var(--photo)">'
            f'<img alt="" src="{data_uri(overlay(share, scale, size))}"></div>'
            f"<figcaption>{inline.text(word)}<small>{inline.percent(peak)}</small></figcaption></figure>"
            for word, share, scale, peak in zip(heat.words, plan, scales, peaks, strict=True)
        )
        return f'<div class="tiles">{"".join(drawn)}</div>'

    together = [float(peaks.max(initial=0.0))] * len(peaks)
    return (
        f'<article class="heat" style="--photo:url({data_uri(heat.picture)})"><h3>{inline.text(heat.title)} '
        f"<small>transport distance {inline.number(heat.distance)}</small></h3>{tiles(list(peaks))}"
        f"<details><summary>All words on one scale, up to {inline.percent(together[0] if together else 0)}</summary>{tiles(together)}</details>"
        "</article>"
    )


def _tables(group: list[Table]) -> str:
    return "".join(map(_table, group))


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{inline.text(column)}</th>' for column in table.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    caption = f'<p class="quiet">{inline.text(table.caption)}</p>' if table.caption else ""
    return (
        f'<h3>{inline.text(table.title)}</h3><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{caption}"
    )


def _cell(value: str | float) -> str:
    return f"<td{'' if isinstance(value, str) else ' class=number'}>{inline.number(value)}</td>"


def _facts(group: list[Facts]) -> str:
    pairs = (pair for facts in group for pair in facts.facts.items())
    return f"<dl>{''.join(f'<dt>{inline.text(key)}</dt><dd>{inline.text(value)}</dd>' for key, value in pairs)}</dl>"


def _findings(group: list[Findings]) -> str:
    found = [finding for findings in group for finding in findings.findings]
    if not found:
        return '<p class="quiet">Nothing found.</p>'
    items = (
        f'<li class="{severity if severity in ("error", "warning") else "note"}"><b>{inline.text(severity)}</b> '
        f"{inline.text(sentence)}</li>"
        for severity, sentence in found
    )
    return f"<ul class=findings>{''.join(items)}</ul>"


HEADINGS = {
    Curve: "Curves",
    RetrievalExample: "Retrieved",
    CaptionExample: "Captions",
    AnswerExample: "Questions and answers",
    JudgedExample: "Judged",
    AlikeExample: "Alike",
    Histogram: "Scores",
    HeatMap: "Words over the picture",
    Table: "Results",
    Facts: "The run",
    Findings: "Findings",
}
RENDER = {
    Curve: _curves,
    RetrievalExample: _retrieval,
    CaptionExample: captioned,
    AnswerExample: _answers,
    JudgedExample: judged,
    AlikeExample: alike,
    Histogram: histograms,
    HeatMap: _heat_maps,
    Table: _tables,
    Facts: _facts,
    Findings: _findings,
}
