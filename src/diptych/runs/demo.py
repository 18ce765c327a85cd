"""Demo: a tiny VLMo on built-in synthetic scenes, and what its pre-training is worth in fine-tuning."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from diptych.config.tasks import Evaluation
from diptych.report import Table as ReportTable
from diptych.report import write_report
from diptych.runs import demo_recipes as recipes
from diptych.runs.baselines import baselines
from diptych.runs.evaluate import evaluate
from diptych.runs.finetune import finetune, inherited
from diptych.runs.pretrain import pretrain
from diptych.runs.report import continue_on_error
from diptych.utils.lock import single_writer


@dataclass(frozen=True)
class Row:
    """One metric of one task: at chance, fine-tuned from scratch, and fine-tuned after pre-training."""

    metric: str
    chance: float
    scratch: float
    pretrained: float


@single_writer
def demo(out: Path, seed: int = 0) -> list[Row]:
    """Pre-trains, fine-tunes for VQA and retrieval after pre-training and from scratch (same budget), and compares.

    Each run has a folder with a report of its own below `out`. Started again, the demo resumes where it stopped.
    """
    console, start_time = Console(), time.perf_counter()
    console.rule("pre-training on scenes")
    pretrain(recipes.pretraining(seed), out / "pretrain")
    rows = []
    for recipe, evaluation in ((recipes.vqa(seed), recipes.VQA), (recipes.retrieval(seed), recipes.RETRIEVAL)):
        metrics = {}
        for start in ("scratch", "pretrained"):
            console.rule(f"{recipe.task}, {'from scratch' if start == 'scratch' else 'after pre-training'}")
            run = inherited(out / "pretrain", recipe) if start == "pretrained" else recipe
            folder = out / f"{recipe.task}-{start}"
            finetune(run, folder)
            metrics[start] = evaluate(folder, evaluation)
        rows += _rows(evaluation, metrics["scratch"], metrics["pretrained"])
    minutes = (time.perf_counter() - start_time) / 60
    _print_table(console, rows, minutes)
    table = ReportTable(
        "What pre-training is worth",
        ("metric", "chance", "fine-tuned from scratch", "pre-trained, then fine-tuned"),
        [[row.metric, row.chance, row.scratch, row.pretrained] for row in rows],
        f"Built-in scenes, val split; the same fine-tuning budget; seed {seed}; {minutes:.1f} minutes in all. "
        "Chance in VQA: the most common answer.",
    )
    continue_on_error("report.html", lambda: write_report(out / "report.html", "Diptych demo", [table]), None)
    console.print(f"report: {out / 'report.html'}; reports of the runs: {out}/*/report.html")
    return rows


def _rows(evaluation: Evaluation, scratch: dict[str, float], pretrained: dict[str, float]) -> list[Row]:
    """The rows of one task."""
    if evaluation.task == "vqa":
        prior = baselines(replace(evaluation, data="scenes:1000"))["most common answer"]
        return [Row("VQA accuracy", prior["accuracy"], scratch["accuracy"], pretrained["accuracy"])]
    return [
        Row(f"{name} of {scratch['images']:.0f}", scratch[f"{name}, chance"], scratch[name], pretrained[name])
        for name in ("text to image R@1", "text to image R@10", "image to text R@10")
    ]


def _print_table(console: Console, rows: list[Row], minutes: float) -> None:
    table = Table(title=f"scenes, val split, {minutes:.1f} minutes")
    for column in ("metric", "chance", "from scratch", "pre-trained"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for row in rows:
        table.add_row(row.metric, *(f"{100 * x:.1f} %" for x in (row.chance, row.scratch, row.pretrained)))
    console.print(table)
    worse = [row.metric for row in rows if row.pretrained <= row.scratch]
    if worse:
        console.print(f"pre-training did not help here: {', '.join(worse)}")
