"""Studies of tasks: runs command lines with several seeds, and writes a results file of their scores.

A file beside this one lists the rows of a study and calls `run`; the same command, given again, continues.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from bench.result_pages import RESULTS, Record

FAILED = "failed"


@dataclass(frozen=True)
class Row:
    """One row of a study.

    Args:
        name: its first cell.
        commands: command lines after ``diptych``, in order; ``{seed}`` and ``{out}`` are replaced, and ``{data}``.
        scores: the evaluation whose metrics are the row's: a folder below the study's, with ``*`` for any text; "" for a
            row of fixed `values`.
        values: metrics that are known without a run, as of chance.
    """

    name: str
    commands: tuple[str, ...] = ()
    scores: str = ""
    values: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Column:
    """One column: its heading, the metric's name in metrics.json, a factor, decimal places, and whether the 95 %
    interval of the first seed stands in a column of its own.
    """

    heading: str
    metric: str
    scale: float = 100.0
    digits: int = 1
    interval: bool = True


@dataclass
class Study:
    """A study, and where it is run.

    Args:
        name: of the results file.
        facts: fields of the results file: data, title and others.
        data: the folder of each data set, by the name in braces in command lines; published as that name.
    """

    name: str
    rows: Sequence[Row]
    columns: Sequence[Column]
    seeds: Sequence[int]
    out: Path
    facts: Mapping[str, Any]
    data: Mapping[str, str]

    def run(self, minutes: float = float("inf")) -> None:
        """Runs every row with every seed and writes the results after each; no further one after `minutes`."""
        began, cells = time.perf_counter(), dict[tuple[str, int], Mapping[str, Any] | None]()
        for seed, row in ((seed, row) for seed in self.seeds for row in self.rows):
            if (time.perf_counter() - began) / 60 < minutes or row.values is not None:
                cells[row.name, seed] = self._scores(row, seed)
                self._write(cells)

    def _scores(self, row: Row, seed: int) -> Mapping[str, Any] | None:
        """metrics.json of a row with a seed; None if one of its commands failed."""
        if row.values is not None:
            return {"metrics": dict(row.values)}
        self.out.mkdir(parents=True, exist_ok=True)
        for command in row.commands:
            words = shlex.split(self._filled(command, seed))
            done = self.out / "done" / f"{hash_of(words):x}"
            if done.exists():
                continue
            with (self.out / "log.txt").open("a") as log:
                print(f"\n$ diptych {shlex.join(words)}", file=log, flush=True)
                code = subprocess.run([sys.executable, "-m", "diptych", *words], stdout=log, stderr=log).returncode
            if code:
                return None
            done.parent.mkdir(exist_ok=True)
            done.touch()
        found = sorted(self.out.glob(f"{self._filled(row.scores, seed, relative=True)}/metrics.json"))
        return json.loads(found[-1].read_text()) if found else None

    def _filled(self, text: str, seed: int, relative: bool = False) -> str:
        return text.format(seed=seed, out="." if relative else self.out, **self.data)

    def _write(self, cells: Mapping[tuple[str, int], Mapping[str, Any] | None]) -> None:
        headings: list[list[Any]] = [[self.facts.get("first column", "model"), 0]]
        for column in self.columns:
            headings += [[column.heading, column.digits]] + ([["95 % interval", 0]] if column.interval else [])
        rows = [self._row(row, [cells.get((row.name, seed), {}) for seed in self.seeds]) for row in self.rows]
        record: Record = {
            "columns": headings,
            "rows": rows,
            "commands": {row.name: [self._published(command) for command in row.commands] for row in self.rows},
            "command": f"python -m bench.{self.name}",
            "seeds": self._measured_seeds(cells),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores shared with other work, no GPU",
            "versions": f"Python {platform.python_version()}, PyTorch {torch.__version__}",
            "date": str(date.today()),
            **{name: value for name, value in self.facts.items() if name != "first column"},
        }
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def _measured_seeds(self, cells: Mapping[tuple[str, int], Mapping[str, Any] | None]) -> str:
        """The seeds of which every row that was run has a result, and what cells of several seeds contain."""
        run = {row.name for row in self.rows if row.commands and any(cells.get((row.name, s)) for s in self.seeds)}
        seeds = [seed for seed in self.seeds if run and all(cells.get((name, seed)) for name in run)]
        several = ": mean ± half the range" if len(seeds) > 1 else ""
        numbers = ", ".join(map(str, seeds)) or str(self.seeds[0])
        return (
            f"seed{'s' * (len(seeds) > 1)} {numbers}{several}; intervals: photographs resampled, seed {self.seeds[0]}"
        )

    def _published(self, command: str) -> str:
        """A command line as a reader gives it."""
        names = {name: f"{name}/" if "scenes" not in value else value for name, value in self.data.items()}
        return "diptych " + command.format(seed="SEED", out="runs", **names)

    def _row(self, row: Row, found: Sequence[Mapping[str, Any] | None]) -> list[Any]:
        cells: list[Any] = [row.name]
        for column in self.columns:
            scores = [one["metrics"].get(column.metric) for one in found if one]
            values = [column.scale * score for score in scores if score is not None]
            if None in found:
                cells += [FAILED] + ([None] if column.interval else [])
                continue
            middle = sum(values) / len(values) if values else None
            half = (max(values) - min(values)) / 2 if values else 0.0
            cells.append([middle, half] if middle is not None and len(values) > 1 and half else middle)
            if column.interval:
                cells.append(self._interval(found[0], column))
        return cells

    @staticmethod
    def _interval(scores: Mapping[str, Any] | None, column: Column) -> str | None:
        ends = (scores or {}).get("intervals", {}).get(column.metric)
        return (
            f"{column.scale * ends[0]:.{column.digits}f} to {column.scale * ends[1]:.{column.digits}f}"
            if ends
            else None
        )


def hash_of(words: Sequence[str]) -> int:
    """A number of a command line, the same in every process."""
    return int.from_bytes(hashlib.blake2b("\0".join(words).encode(), digest_size=8).digest())
