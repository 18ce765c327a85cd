"""The benchmark: trains and evaluates every row with every seed on the same data, and writes one table."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from diptych.benchmark.row_results import RowResult, is_trained, same_run, scorable_tasks, stage_result, stored_metrics
from diptych.benchmark.table import write_tables
from diptych.config.run import Pretrain
from diptych.config.tasks import Evaluation
from diptych.inference.saved_model import RunError
from diptych.runs.evaluate import evaluate
from diptych.runs.pretrain import pretrain
from diptych.utils.io import WriteError
from diptych.utils.lock import single_writer
from diptych.utils.terminal import echo

Stages = tuple[Pretrain, ...]
"""Runs that are each initialised from the one before; the last one is evaluated."""


@dataclass(frozen=True)
class Stage:
    """A run of a row, its folder, and its evaluations, by task."""

    folder: Path
    run: Pretrain
    evaluations: dict[str, Evaluation]


@dataclass
class Table:
    """The rows, seeds, data and evaluations of a benchmark, and the results so far."""

    rows: Mapping[str, Stages]
    seeds: Sequence[int]
    data: str
    out: Path
    evaluations: Mapping[str, Evaluation]
    finished: dict[tuple[str, int], RowResult] = field(default_factory=dict)
    failed: dict[tuple[str, int], str] = field(default_factory=dict)

    def stages(self, row: str, seed: int) -> list[Stage]:
        """The stages of a row with a seed, each with its folder and initialised from the one before."""
        stages: list[Stage] = []
        for number, stage in enumerate(self.rows[row], 1):
            last = number == len(self.rows[row])
            folder = self.out / row / f"seed{seed}" / ("last" if last else f"stage{number}")
            init_from = str(stages[-1].folder) if stages else stage.init_from
            run = replace(stage, data=self.data, init_from=init_from, training=replace(stage.training, seed=seed))
            evaluations = {task: self.evaluations[task] for task in (scorable_tasks(run) if last else ())}
            stages.append(Stage(folder, run, evaluations))
        return stages

    def cell(self, row: str, seed: int) -> RowResult:
        """The results of a row with a seed, read from its run folders."""
        if (row, seed) not in self.finished:
            parts = [stage_result(stage.folder, stage.run, stage.evaluations) for stage in self.stages(row, seed)]
            cell = RowResult(row, seed, tuple(part for part in parts if part), self.failed.get((row, seed), ""))
            if None in parts:
                return replace(cell, stages=())
            self.finished[row, seed] = cell
        return self.finished[row, seed]

    def write(self) -> str:
        """Writes the table of the results so far; returns it as Markdown."""
        cells = [self.cell(row, seed) for row in self.rows for seed in self.seeds]
        return write_tables(self.out, cells, self.data, self.seeds)


@single_writer
def benchmark(
    rows: Mapping[str, Stages],
    seeds: Sequence[int],
    data: str,
    out: Path,
    minutes: float,
    evaluations: Mapping[str, Evaluation],
) -> str:
    """Trains and evaluates every row with every seed; writes results.md, results.json, report.html; returns the first.

    Called again, it reads finished runs and continues with the others. After `minutes` no further row is started: rows
    that are not finished read "not run". A row that fails does not stop the others.

    Args:
        evaluations: the evaluation of each task; a run has those that its objectives allow.
    """
    console, began, table = Console(), time.perf_counter(), Table(rows, seeds, data, out, evaluations)
    table.write()
    for row, seed in ((row, seed) for seed in seeds for row in rows):
        if table.cell(row, seed).stages or (time.perf_counter() - began) / 60 >= minutes:
            continue
        console.rule(f"{row}, seed {seed}")
        try:
            run_stages(table.stages(row, seed))
        except WriteError:  # no other row could be written either
            raise
        except Exception as error:  # the other rows can still be run
            table.failed[row, seed] = " ".join(f"{type(error).__name__}: {error}".split())
            echo(traceback.format_exc(), error=True)
        table.write()  # after each row, so that an interruption loses none
    return table.write()


def run_stages(stages: list[Stage]) -> None:
    """Trains and evaluates the stages that are not yet. Raises RunError if a folder contains another run."""
    for stage in stages:
        if (stage.folder / "run.json").is_file() and not same_run(stage.folder, stage.run):
            raise RunError(f"{stage.folder} contains a run of other settings; give another --out, or remove it")
        if not is_trained(stage.folder):
            pretrain(stage.run, stage.folder)
        for evaluation in stage.evaluations.values():
            if stored_metrics(stage.folder, stage.run, evaluation) is None:
                evaluate(stage.folder, evaluation)
