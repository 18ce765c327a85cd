"""The table of what every system has learned: as Markdown, as JSON and as a page."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

import diptych
from diptych.benchmark.cells import LAST, Cell
from diptych.benchmark.published import ROWS
from diptych.report import Facts, Table, write_report
from diptych.runs.report import report_errors
from diptych.utils.io import atomic_write

NOT_RUN, NOTHING = "not run", "–"
COLUMNS = (
    "system", "seeds", "minutes", "losses: start → end (floor)", "matching", "image → text R@1/5/10",
    "text → image R@1/5/10", "CIDEr-D", "BLEU-4",
)  # fmt: skip
PUBLISHED_COLUMNS = ("published", "image → text R@1/5/10", "text → image R@1/5/10", "BLEU-1/2/3/4", "source")
WAYS = ("image to text", "text to image")
KS = (1, 5, 10)


def caption(data: str, seeds: Sequence[int]) -> str:
    """What the numbers are."""
    return (
        f"{data}, split val; seeds {', '.join(map(str, seeds))}: the mean, and ± half the range of several. Minutes of training a "
        "seed, all stages. A loss at the start is the mean of the first steps that were logged, at the end of the last "
        f"{LAST:.0%} of the steps; its floor is the loss of a model that knows only the prior. Matching: accuracy in percent, "
        "each caption with its own picture or, half of the time, another. Recall in percent over the whole gallery, every "
        "photo with every caption; where the best were fused and matched again, contrast alone stands in brackets (evaluate --rerank_by says by what)."
    )


def rows(cells: Sequence[Cell]) -> list[list[str]]:
    """One row a system, in the order in which they come."""
    by_row: dict[str, list[Cell]] = {}
    for cell in cells:
        by_row.setdefault(cell.row, []).append(cell)
    return [_row(name, parts) for name, parts in by_row.items()]


def _row(name: str, cells: list[Cell]) -> list[str]:
    finished = [cell for cell in cells if cell.stages]
    open_ = [
        f"seed {cell.seed}: {f'failed: {cell.failed}' if cell.failed else NOT_RUN}" for cell in cells if not cell.stages
    ]
    if not finished:
        return [name, "; ".join(open_), *[NOT_RUN] * (len(COLUMNS) - 2)]
    seeds = ", ".join(str(cell.seed) for cell in finished) + "".join(f"; {what}" for what in open_)
    return [
        name,
        seeds,
        _mean([sum(stage.minutes for stage in cell.stages) for cell in finished]),
        _losses(finished),
        _score(finished, "matching", "matching accuracy", 100),
        *(_recalls(finished, way) for way in WAYS),
        _score(finished, "captioning", "CIDEr-D", 1, 3),
        _score(finished, "captioning", "BLEU-4", 100),
    ]


def _losses(cells: list[Cell]) -> str:
    """Stage after stage, the mean over seeds."""
    stages = []
    for same in zip(*(cell.stages for cell in cells), strict=True):
        parts = []
        for name, loss in same[0].losses.items():
            start, end = (sum(getattr(one.losses[name], at) for one in same) / len(same) for at in ("start", "end"))
            floor = "" if loss.floor is None else f" ({loss.floor:.2f})"
            parts.append(f"{name} {start:.2f} → {end:.2f}{floor}")
        stages.append((f"{same[0].recipe}: " if len(cells[0].stages) > 1 else "") + ", ".join(parts))
    return "; ".join(stages)


def _score(cells: list[Cell], task: str, measure: str, times: float, digits: int = 1) -> str:
    """A measure of the last stage."""
    found = [cell.stages[-1].scores.get(task, {}).get(measure) for cell in cells]
    values = [times * value for value in found if value is not None]
    return _mean(values, digits) if len(values) == len(found) else NOTHING


def _recalls(cells: list[Cell], way: str) -> str:
    now, before = (
        [_score(cells, "retrieval", f"{way} R@{k}{when}", 100) for k in KS] for when in ("", ", before matching")
    )
    if NOTHING in now:
        return NOTHING
    return " / ".join(now) + ("" if NOTHING in before else f" ({' / '.join(part.split(' ')[0] for part in before)})")


def _mean(values: Sequence[float], digits: int = 1) -> str:
    spread = f" ±{(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.{digits}f}{spread}"


def published() -> list[list[str]]:
    def joined(values: tuple[float, ...]) -> str:
        return " / ".join(f"{value:.1f}" for value in values) or NOTHING

    return [[row.system, *map(joined, (row.image_to_text, row.text_to_image, row.bleu)), row.source] for row in ROWS]


PUBLISHED = (
    "Flickr8k's 1,000 test photos, other features and other training; from memory of the papers, not verified here. They tell "
    "the scale."
)


def markdown(cells: Sequence[Cell], what: str) -> str:
    """Both tables, with what they show."""
    return "\n\n".join([_table(COLUMNS, rows(cells)), what, _table(PUBLISHED_COLUMNS, published()), PUBLISHED]) + "\n"


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (columns, ["---"] * len(columns), *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def write_tables(out: Path, cells: Sequence[Cell], data: str, seeds: Sequence[int]) -> str:
    """results.md, results.json and report.html; gives the Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    what, facts = caption(data, seeds), _facts()
    told = markdown(cells, what) + f"\n`{facts['command']}`, {facts['date']}, {facts['machine']}.\n"
    content = {**facts, "data": data, "seeds": list(seeds), "cells": [asdict(cell) for cell in cells]}
    writers: dict[str, Callable[[], str]] = {
        "results.md": lambda: told,
        "results.json": lambda: json.dumps(content, indent=1),
    }
    for name, make in writers.items():
        with atomic_write(out / name) as path:
            path.write_text(make(), encoding="utf-8")
    tables = [
        Table("What every system has learned", COLUMNS, rows(cells), what),
        Table("Published", PUBLISHED_COLUMNS, published(), PUBLISHED),
    ]
    page = [*tables, Facts(facts)]
    report_errors("report.html", lambda: write_report(out / "report.html", f"Every system learns: {data}", page), None)
    return told


def _facts() -> dict[str, str]:
    return {
        "command": " ".join(["diptych", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {platform.system()}",
        "diptych": diptych.__version__,
        "torch": torch.__version__,
    }
