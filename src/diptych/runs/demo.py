"""The demo: a tiny VLMo on the built-in world, and what pre-training is worth there."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from diptych.config.run import Evaluation, Finetune
from diptych.report import Table as ReportTable
from diptych.report import write_report
from diptych.runs import demo_recipes as recipes
from diptych.runs.baselines import baselines
from diptych.runs.evaluate import evaluate
from diptych.runs.finetune import finetune, inherited
from diptych.runs.pretrain import pretrain
from diptych.runs.report import report_errors
from diptych.utils.lock import single_writer


@dataclass(frozen=True)
class Row:
    """One measure of one task, side by side."""

    measure: str
    chance: float
    scratch: float
    pretrained: float


@single_writer
def demo(out: Path, seed: int = 0) -> list[Row]:
    """Pre-trains; fine-tunes for VQA and retrieval from there and from scratch, same budget; scores; reports.

    Started again it goes on where it stopped. Every run has a folder and a report of its own below `out`.
    """
    console, began = Console(), time.perf_counter()
    before = recipes.pretraining(seed)
    console.rule("pre-training on scenes")
    pretrain(before, out / "pretrain")
    rows = []
    for fresh, asked in ((recipes.vqa(seed), recipes.VQA), (recipes.retrieval(seed), recipes.RETRIEVAL)):
        found = {}
        for start in ("scratch", "pretrained"):
            console.rule(f"{fresh.task}, {start}")
            run: Finetune = inherited(out / "pretrain", fresh) if start == "pretrained" else fresh
            folder = out / f"{fresh.task}-{start}"
            finetune(run, folder)
            found[start] = evaluate(folder, asked)
        rows += _rows(asked, found["scratch"], found["pretrained"])
    minutes = (time.perf_counter() - began) / 60
    _show(console, rows, minutes)
    table = ReportTable(
        "What pre-training is worth",
        ("measure", "chance", "fine-tuned from scratch", "pre-trained, then fine-tuned"),
        [[row.measure, row.chance, row.scratch, row.pretrained] for row in rows],
        f"Built-in world, val split; the same fine-tuning budget; seed {seed}; {minutes:.1f} minutes in all. The most "
        "common answer stands for chance in VQA.",
    )
    report_errors("report.html", lambda: write_report(out / "report.html", "Diptych demo", [table]), None)
    console.print(f"report: {out / 'report.html'}; each run's own: {out}/*/report.html")
    return rows


def _rows(asked: Evaluation, scratch: dict[str, float], pretrained: dict[str, float]) -> list[Row]:
    if asked.task == "vqa":
        guess = baselines(replace(asked, data="scenes:1000"))["most common answer"]
        return [Row("VQA accuracy", guess["accuracy"], scratch["accuracy"], pretrained["accuracy"])]
    return [
        Row(f"{name} of {scratch['images']:.0f}", scratch[f"{name}, chance"], scratch[name], pretrained[name])
        for name in ("text to image R@1", "text to image R@10", "image to text R@10")
    ]


def _show(console: Console, rows: list[Row], minutes: float) -> None:
    table = Table(title=f"scenes, val split, {minutes:.1f} minutes")
    for column in ("measure", "chance", "from scratch", "pre-trained"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for row in rows:
        table.add_row(row.measure, *(f"{100 * x:.1f} %" for x in (row.chance, row.scratch, row.pretrained)))
    console.print(table)
    worse = [row.measure for row in rows if row.pretrained <= row.scratch]
    if worse:
        console.print(f"pre-training did not help here: {', '.join(worse)}")
