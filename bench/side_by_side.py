"""Shared by all benchmarks: the machine's description, candidates timed in turn, a table of their medians."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch


@dataclass
class Timing:
    """The timings of one candidate. If other programs use the cores, CPU time is more reliable."""

    wall: list[float] = field(default_factory=list)  # seconds on the clock
    cpu: list[float] = field(default_factory=list)  # seconds of this process on all its threads


def in_turn(candidates: Mapping[str, Callable[[int], Any]], rounds: int) -> tuple[dict[str, Timing], dict[str, Any]]:
    """Timings, and each candidate's first result. Run A B C, A B C …, so that a slow minute affects all equally.

    Round 0 is warm-up and not timed. Candidates are called with the number of the round.
    """
    first = {name: run(0) for name, run in candidates.items()}
    timings = {name: Timing() for name in candidates}
    for number in range(1, rounds + 1):
        for name, run in candidates.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run(number)
            timings[name].wall.append(time.perf_counter() - wall)
            timings[name].cpu.append(time.process_time() - cpu)
    return timings, first


def heading(title: str) -> str:
    """A Markdown heading with the date, machine, load and versions of a measurement."""
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    when = time.strftime("%Y-%m-%d %H:%M %Z")
    machine = f"{platform.machine()}, {processor()}, {os.cpu_count()} cores{load}; {torch.get_num_threads()} threads"
    versions = f"PyTorch {torch.__version__}, Python {platform.python_version()}"
    return f"\n## {title}\n\n{when}; {machine}; {versions}\n"


def processor() -> str:
    """The name of the CPU."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unnamed processor"


def table(timings: Mapping[str, Timing], reference: str, work: float = 0.0, unit: str = "") -> str:
    """A Markdown table. Ratios are the reference's median over the candidate's: above 1 the candidate is faster.

    `work`: the amount (in `unit`) that a run does, for a column of its rate per second.
    """
    head = ["", "median s", "min–max", f"× {reference}", "CPU s", "× in CPU s", *([f"{unit}/s"] if work else [])]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    base = timings[reference]
    for name, timing in timings.items():
        wall, cpu = median(timing.wall), median(timing.cpu)
        row = [name, f"{wall:.2f}", f"{min(timing.wall):.2f}–{max(timing.wall):.2f}", f"{median(base.wall) / wall:.2f}"]
        row += [f"{cpu:.2f}", f"{median(base.cpu) / cpu:.2f}", *([f"{work / wall:.1f}"] if work else [])]
        lines.append(row)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
