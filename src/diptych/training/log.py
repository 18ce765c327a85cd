"""What a run says: rows of metrics.jsonl, TensorBoard, and a line on the terminal."""

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

# The fields that two runs of the same thing may differ in: seconds trained so far, samples a second since the last row,
# and the share of the time since then that was spent waiting for data.
TIME_FIELDS = frozenset({"seconds", "samples_per_second", "waiting"})
_QUIET = 10.0  # seconds between lines where there is no terminal


class Log:
    """Rows of a run from step `start` on; rows beyond it, left by a run that was killed, are dropped. A context."""

    def __init__(self, out: Path, start: int, steps: int):
        from torch.utils.tensorboard import SummaryWriter  # a second to import, so only when a run begins

        self.path = out / "metrics.jsonl"
        self.console, self.said = Console(), 0.0
        self.kept = _cut_back(self.path, start, self.say)
        self.hook, threading.excepthook = threading.excepthook, self._of_a_thread
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

    def _of_a_thread(self, failed: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread raises what it meets again where a row is written: it need not show a traceback besides."""
        if not isinstance(failed.exc_value, OSError):
            self.hook(failed)

    def row(self, row: Mapping[str, Any]) -> None:
        """Writes a row: to the file at once, so that what was logged survives a kill. JSON has no NaN: null instead."""
        row = {name: value if math.isfinite(value) else None for name, value in row.items()}
        with naming_write_errors(self.path):
            self.file.write(json.dumps(row, allow_nan=False) + "\n")
            self.file.flush()
        with naming_write_errors(self.path.with_name("tensorboard")):
            for name, value in row.items():
                if name != "step" and value is not None:
                    self.board.add_scalar(name, value, row["step"])

    def show(self, row: Mapping[str, Any], last: bool = False) -> None:
        """The progress line: every loss and metric, samples a second, time left."""
        said = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in _UNSAID)
        said += f"  {row['samples_per_second']:.1f} samples/s"
        if self.console.is_terminal:
            self.progress.update(self.task, completed=row["step"], row=said)
        elif last or time.perf_counter() - self.said > _QUIET:
            self.said = time.perf_counter()
            left = (self.said - self.began) / max(1, row["step"] - self.start) * (self.steps - row["step"])
            self.say(f"step {row['step']}/{self.steps}  {said}  {left / 60:.1f} min left")

    def say(self, line: object) -> None:
        """Prints a line above the progress."""
        self.console.print(printable(str(line)), highlight=False, markup=False, soft_wrap=True)


_UNSAID = TIME_FIELDS | {"step", "samples", "skipped", "learning_rate", "grad_norm"}


ROW = {"step": int, str: (int, float, type(None))}


def _cut_back(path: Path, step: int, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Drops the rows after `step`, and a last line that was cut off as it was written; the rows kept. Where a line before is
    damaged the rows that can be read stay, and the file as it was is kept under another name, which is said.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    cut_off = len(lines) - 1  # what stands behind the last line end
    rows, damaged = [], []
    for number, line in enumerate(lines):
        try:
            row = parse_json(line, ROW, f"line {number + 1}") if line.strip() else None
        except DamagedFile as error:
            if number != cut_off:
                damaged.append(str(error))
            continue
        if row is not None and row["step"] > step:
            break
        rows += [row] if row is not None else []
    if damaged:
        aside = _aside(path)
        with atomic_write(aside) as partial:
            partial.write_bytes(b"\n".join(lines))
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        say(f"{path}, {damaged[0].partition(';')[0]}{more}: left out; the file as it was is kept as {aside.name}")
    with atomic_write(path) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _aside(path: Path) -> Path:
    """A name that is free, for a file that is damaged."""
    names = (path.with_name(f"{path.stem}.damaged-{n}{path.suffix}") for n in itertools.count(1))
    return next(name for name in names if not name.exists())
