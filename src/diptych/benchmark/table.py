"""The benchmark table as Markdown, as JSON and as an HTML report."""

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
from diptych.benchmark.row_results import LAST_SHARE, RowResult
from diptych.benchmark.rows import PUBLISHED_ROWS
from diptych.report import Facts, Table, write_report
from diptych.runs.report import continue_on_error
from diptych.utils.io import atomic_write

NOT_RUN, NOTHING = "not run", "–"
COLUMNS = (
    "system",
    "seeds",
    "minutes",
    "losses: start → end (chance)",
    "matching",
    "image → text R@1/5/10",
    "text → image R@1/5/10",
    "CIDEr-D",
    "BLEU-4",
)
PUBLISHED_COLUMNS = ("published", "image → text R@1/5/10", "text → image R@1/5/10", "BLEU-1/2/3/4", "source")
DIRECTIONS = ("image to text", "text to image")
KS = (1, 5, 10)


def table_note(data: str, seeds: Sequence[int]) -> str:
    """The meaning of the table's numbers."""
    return (
        f"{data}, split val; seeds {', '.join(map(str, seeds))}: mean, and ± half the range over seeds; of a single "
        "seed the 95 % interval over draws of the photographs, in square brackets. Minutes: "
        "training time per seed, all stages. A loss starts at the mean of the first logged steps and ends at the mean "
        f"of the last {LAST_SHARE:.0%} of the steps; its chance level is the loss of a model that knows only the label "
        "prior. Matching: accuracy in percent, half of the pairs with another image. Recall: percent, over the whole "
        "gallery, all images against all captions; if the top was re-ranked by ITM (evaluate --rerank_by), "
        "contrastive retrieval only is in brackets."
    )


def rows(cells: Sequence[RowResult]) -> list[list[str]]:
    """A table row for each system, in the order of `cells`."""
    by_row: dict[str, list[RowResult]] = {}
    for cell in cells:
        by_row.setdefault(cell.row, []).append(cell)
    return [_row(name, parts) for name, parts in by_row.items()]


def _row(name: str, cells: list[RowResult]) -> list[str]:
    finished = [cell for cell in cells if cell.stages]
    unfinished = [
        f"seed {cell.seed}: {f'failed: {cell.failed}' if cell.failed else NOT_RUN}" for cell in cells if not cell.stages
    ]
    if not finished:
        return [name, "; ".join(unfinished), *[NOT_RUN] * (len(COLUMNS) - 2)]
    seeds = ", ".join(str(cell.seed) for cell in finished) + "".join(f"; {reason}" for reason in unfinished)
    return [
        name,
        seeds,
        _mean([sum(stage.minutes for stage in cell.stages) for cell in finished]),
        _losses(finished),
        _score(finished, "matching", "matching accuracy", 100),
        *(_recalls(finished, direction) for direction in DIRECTIONS),
        _score(finished, "captioning", "CIDEr-D", 1, 3),
        _score(finished, "captioning", "BLEU-4", 100),
    ]


def _losses(cells: list[RowResult]) -> str:
    """The losses of each stage, as means over seeds."""
    stages = []
    for seeds in zip(*(cell.stages for cell in cells), strict=True):
        parts = []
        for name, loss in seeds[0].losses.items():
            start = sum(stage.losses[name].start for stage in seeds) / len(seeds)
            end = sum(stage.losses[name].end for stage in seeds) / len(seeds)
            chance = "" if loss.chance is None else f" ({loss.chance:.2f})"
            parts.append(f"{name} {start:.2f} → {end:.2f}{chance}")
        stages.append((f"{seeds[0].recipe}: " if len(cells[0].stages) > 1 else "") + ", ".join(parts))
    return "; ".join(stages)


def _score(cells: list[RowResult], task: str, metric: str, scale: float, digits: int = 1) -> str:
    """A metric of the last stage; NOTHING if a seed lacks it. Of a single seed with its interval, if it has one."""
    metrics = [cell.stages[-1].scores.get(task, {}).get(metric) for cell in cells]
    values = [scale * value for value in metrics if value is not None]
    if len(values) != len(metrics):
        return NOTHING
    ends = cells[0].stages[-1].intervals.get(task, {}).get(metric) if len(cells) == 1 else None
    return _mean(values, digits) + (f" [{scale * ends[0]:.{digits}f}, {scale * ends[1]:.{digits}f}]" if ends else "")


def _recalls(cells: list[RowResult], direction: str) -> str:
    """Recall at 1, 5 and 10; in brackets that before re-ranking."""
    recalls, before = (
        [_score(cells, "retrieval", f"{direction} R@{k}{stage}", 100) for k in KS]
        for stage in ("", ", before re-ranking")
    )
    if NOTHING in recalls:
        return NOTHING
    return " / ".join(recalls) + (
        "" if NOTHING in before else f" ({' / '.join(part.split(' ')[0] for part in before)})"
    )


def _mean(values: Sequence[float], digits: int = 1) -> str:
    spread = f" ±{(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.{digits}f}{spread}"


def published_rows() -> list[list[str]]:
    """The table rows of published results."""

    def joined(values: tuple[float, ...]) -> str:
        return " / ".join(f"{value:.1f}" for value in values) or NOTHING

    return [
        [row.system, *map(joined, (row.image_to_text, row.text_to_image, row.bleu)), row.source]
        for row in PUBLISHED_ROWS
    ]


PUBLISHED_NOTE = (
    "Flickr8k's 1,000 test photos, other features and other training; from memory of the papers, not verified here. "
    "They give the scale."
)


def markdown(cells: Sequence[RowResult], description: str) -> str:
    """Both tables with their descriptions."""
    return (
        "\n\n".join(
            [_table(COLUMNS, rows(cells)), description, _table(PUBLISHED_COLUMNS, published_rows()), PUBLISHED_NOTE]
        )
        + "\n"
    )


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (columns, ["---"] * len(columns), *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def write_tables(out: Path, cells: Sequence[RowResult], data: str, seeds: Sequence[int]) -> str:
    """Writes results.md, results.json and report.html; returns the Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    description, facts = table_note(data, seeds), _facts()
    text = markdown(cells, description) + f"\n`{facts['command']}`, {facts['date']}, {facts['machine']}.\n"
    content = {**facts, "data": data, "seeds": list(seeds), "cells": [asdict(cell) for cell in cells]}
    writers: dict[str, Callable[[], str]] = {
        "results.md": lambda: text,
        "results.json": lambda: json.dumps(content, indent=1),
    }
    for name, make in writers.items():
        with atomic_write(out / name) as path:
            path.write_text(make(), encoding="utf-8")
    tables = [
        Table("Every system on the same data", COLUMNS, rows(cells), description),
        Table("Published", PUBLISHED_COLUMNS, published_rows(), PUBLISHED_NOTE),
    ]
    page = [*tables, Facts(facts)]
    continue_on_error("report.html", lambda: write_report(out / "report.html", f"Benchmark: {data}", page), None)
    return text


def _facts() -> dict[str, str]:
    return {
        "command": " ".join(["diptych", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {platform.system()}",
        "diptych": diptych.__version__,
        "torch": torch.__version__,
    }
