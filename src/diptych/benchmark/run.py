"""What every system learns from the same data in the same time: runs trained, scored, and told in one table."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from diptych.benchmark.cells import Cell, is_scored, is_trained, same_run, stage_result, tasks
from diptych.benchmark.table import write_tables
from diptych.config.run import Evaluation, Pretrain
from diptych.runs.evaluate import evaluate
from diptych.runs.pretrain import pretrain
from diptych.runs.run_folder import RunError
from diptych.utils.io import WriteError
from diptych.utils.lock import single_writer
from diptych.utils.terminal import echo

Stages = tuple[Pretrain, ...]
"""Runs of which each starts from the one before; the last is scored."""


@dataclass(frozen=True)
class Stage:
    """A run of a row, its folder, and how it is to be scored, by task."""

    folder: Path
    run: Pretrain
    asked: dict[str, Evaluation]


@dataclass
class Table:
    """Rows with their stages, each trained with every seed on the same data, and scored as `asked`."""

    rows: Mapping[str, Stages]
    seeds: Sequence[int]
    data: str
    out: Path
    asked: Evaluation
    finished: dict[tuple[str, int], Cell] = field(default_factory=dict)
    failed: dict[tuple[str, int], str] = field(default_factory=dict)

    def stages(self, row: str, seed: int) -> list[Stage]:
        """Each in a folder of its own; it starts from the one before."""
        found: list[Stage] = []
        for number, stage in enumerate(self.rows[row], 1):
            last = number == len(self.rows[row])
            folder = self.out / row / f"seed{seed}" / ("last" if last else f"stage{number}")
            start = str(found[-1].folder) if found else stage.init_from
            run = replace(stage, data=self.data, init_from=start, training=replace(stage.training, seed=seed))
            asked = {task: replace(self.asked, task=task) for task in (tasks(run) if last else ())}
            found.append(Stage(folder, run, asked))
        return found

    def cell(self, row: str, seed: int) -> Cell:
        """What the folders tell."""
        if (row, seed) not in self.finished:
            parts = [stage_result(stage.folder, stage.run, stage.asked) for stage in self.stages(row, seed)]
            cell = Cell(row, seed, tuple(part for part in parts if part), self.failed.get((row, seed), ""))
            if None in parts:
                return replace(cell, stages=())
            self.finished[row, seed] = cell
        return self.finished[row, seed]

    def write(self) -> str:
        cells = [self.cell(row, seed) for row in self.rows for seed in self.seeds]
        return write_tables(self.out, cells, self.data, self.seeds)


@single_writer
def benchmark(
    rows: Mapping[str, Stages], seeds: Sequence[int], data: str, out: Path, minutes: float, asked: Evaluation
) -> str:
    """Trains and scores every row with every seed, and writes results.md, results.json and report.html into `out`; gives
    the Markdown.

    Started again it reads what is finished and goes on with what is not. Once `minutes` have passed nothing is begun any
    more: a row that is not finished is told as not run. One that fails does not stop the others. `asked`: how to score,
    on what each run has learned.
    """
    console, began, table = Console(), time.perf_counter(), Table(rows, seeds, data, out, asked)
    table.write()
    for row, seed in ((row, seed) for seed in seeds for row in rows):
        if table.cell(row, seed).stages or (time.perf_counter() - began) / 60 >= minutes:
            continue
        console.rule(f"{row}, seed {seed}")
        try:
            run_through(table.stages(row, seed))
        except WriteError:  # nor could any other row be
            raise
        except Exception as error:  # whatever it is, the other rows can still be run
            table.failed[row, seed] = " ".join(f"{type(error).__name__}: {error}".split())
            echo(traceback.format_exc(), error=True)
        table.write()  # after each row: one that is interrupted changes nothing in it
    return table.write()


def run_through(stages: list[Stage]) -> None:
    """Trains and scores what is not yet. Raises RunError where a folder holds another run."""
    for stage in stages:
        if (stage.folder / "run.json").is_file() and not same_run(stage.folder, stage.run):
            raise RunError(f"{stage.folder} holds a run of other settings; give another --out, or remove it")
        if not is_trained(stage.folder, stage.run):
            pretrain(stage.run, stage.folder)
        for asked in stage.asked.values():
            if is_scored(stage.folder, stage.run, asked) is None:
                evaluate(stage.folder, asked)
