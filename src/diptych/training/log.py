"""The log of a training run: rows of metrics.jsonl, TensorBoard, and a progress line on the terminal."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diptych.utils.io import DamagedFile, atomic_write, naming_write_errors, parse_json
from diptych.utils.terminal import printable

# The fields in which identical runs may differ: seconds trained so far; samples per second since the last row; share
# of the time since the last row that was spent waiting for data.
TIME_FIELDS = frozenset({"seconds", "samples_per_second", "waiting"})
_QUIET = 10.0  # seconds between progress lines without a terminal


class Log:
    """A context manager that logs the rows of a run from step `start` on. Later rows, of a killed run, are dropped.

    `restored_rows`: the rows up to `start`.
    """

    def __init__(self, out: Path, start: int, steps: int):
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, so only when a run starts

        self.path = out / "metrics.jsonl"
        self.console, self.last_printed = Console(), 0.0
        self.restored_rows = _cut_back(self.path, start, self.print_line)
        self.hook, threading.excepthook = threading.excepthook, self._on_thread_error
        with naming_write_errors(out / "tensorboard"):
            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)
        with naming_write_errors(self.path):
            self.file = self.path.open("a")
        columns = TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn()
        self.progress = Progress(*columns, TextColumn("{task.fields[row]}"), console=self.console)
        self.task = self.progress.add_task("step", total=steps, completed=start, row="")
        self.start, self.steps, self.began = start, steps, time.perf_counter()

    def __enter__(self) -> Log:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.progress.stop()
        try:
            with naming_write_errors(self.path):
                self.file.close()
            with naming_write_errors(self.path.with_name("tensorboard")):
                self.board.close()
        finally:
            threading.excepthook = self.hook

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """Hides write errors of TensorBoard's thread, which it raises again, in the main thread, at the next row."""
        if not isinstance(error.exc_value, OSError):
            self.hook(error)

    def row(self, row: Mapping[str, Any]) -> None:
        """Writes a row, flushed at once so that it survives a kill. NaN and infinity, which JSON lacks, become null."""
        row = {name: value if math.isfinite(value) else None for name, value in row.items()}
        with naming_write_errors(self.path):
            self.file.write(json.dumps(row, allow_nan=False) + "\n")
            self.file.flush()
        with naming_write_errors(self.path.with_name("tensorboard")):
            for name, value in row.items():
                if name != "step" and value is not None:
                    self.board.add_scalar(name, value, row["step"])

    def show(self, row: Mapping[str, Any], last: bool = False) -> None:
        """Prints the progress line: every loss and metric, samples per second, time left."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in _NOT_PRINTED)
        text += f"  {row['samples_per_second']:.1f} samples/s"
        if self.console.is_terminal:
            self.progress.update(self.task, completed=row["step"], row=text)
        elif last or time.perf_counter() - self.last_printed > _QUIET:
            self.last_printed = time.perf_counter()
            left = (self.last_printed - self.began) / max(1, row["step"] - self.start) * (self.steps - row["step"])
            self.print_line(f"step {row['step']}/{self.steps}  {text}  {left / 60:.1f} min left")

    def print_line(self, line: object) -> None:
        """Prints a line above the progress bar."""
        self.console.print(printable(str(line)), highlight=False, markup=False, soft_wrap=True)


_NOT_PRINTED = TIME_FIELDS | {"step", "samples", "skipped", "learning_rate", "grad_norm"}


ROW = {"step": int, str: (int, float, type(None))}


def _cut_back(path: Path, step: int, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Removes the rows after `step`, and an incomplete last line, from a metrics.jsonl; returns the remaining rows.

    If an earlier line is damaged, the readable rows stay, the original file is kept under another name, and `say`
    prints which.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    incomplete = len(lines) - 1  # the text after the last line end
    rows, damaged = [], []
    for number, line in enumerate(lines):
        try:
            row = parse_json(line, ROW, f"line {number + 1}") if line.strip() else None
        except DamagedFile as error:
            if number != incomplete:
                damaged.append(str(error))
            continue
        if row is not None and row["step"] > step:
            break
        rows += [row] if row is not None else []
    if damaged:
        backup = _free_name(path)
        with atomic_write(backup) as partial:
            partial.write_bytes(b"\n".join(lines))
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        say(f"{path}, {damaged[0].partition(';')[0]}{more}: left out; the file as it was is kept as {backup.name}")
    with atomic_write(path) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _free_name(path: Path) -> Path:
    """A path that does not exist yet, to keep a damaged file at."""
    names = (path.with_name(f"{path.stem}.damaged-{n}{path.suffix}") for n in itertools.count(1))
    return next(name for name in names if not name.exists())
