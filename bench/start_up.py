"""Start-up from the shell: help, ``estimate``, ``info``, and the first training step, each in a process of its own.

    OMP_NUM_THREADS=1 python -m bench.start_up [--rounds 5]

Prints medians of wall and CPU seconds, and the highest peak of resident memory. A round runs each command once, in
turn. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

RECIPE = "albef.pretrain_4m"
COMMANDS = {
    "diptych --help": ("--help",),
    f"diptych pretrain {RECIPE} --help": ("pretrain", RECIPE, "--help"),
    f"diptych estimate {RECIPE} --gpus 8xA100": ("estimate", RECIPE, "--gpus", "8xA100"),
    "diptych info albef": ("info", "albef"),
}
FIRST_STEP = "diptych pretrain vilt.tiny --data scenes:64 --steps 1 --out runs/vilt, until its loss is printed"
POLL_S = 0.01  # between two polls of a process


@dataclass(frozen=True)
class Use:
    """Time and memory that a process took. `memory`: its peak of resident memory, in bytes."""

    wall_s: float
    cpu_s: float
    memory: int


def measure(words: tuple[str, ...], until: str = "") -> Use:
    """Time and memory of ``diptych WORDS`` to its end, or until its output has a line that begins with `until`.

    The peak of memory is read from /proc, because that of wait4 includes the parent's. Raises RuntimeError if the
    command fails or ends before `until`.
    """
    with tempfile.TemporaryFile() as output:
        began, peak, done = time.perf_counter(), 0, False
        process = subprocess.Popen(
            [sys.executable, "-m", "diptych", *words], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            peak = max(peak, _peak_memory(process.pid))
            if done := bool(until) and f"\n{until}".encode() in os.pread(output.fileno(), 2**20, 0):
                os.killpg(process.pid, signal.SIGKILL)  # with its data loaders
                ended = os.wait4(process.pid, 0)
                break
            time.sleep(POLL_S)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        if not done and (process.returncode or until):
            text = os.pread(output.fileno(), 2**20, 0).decode(errors="replace")
            raise RuntimeError(f"diptych {' '.join(words)} ended with status {process.returncode}: {text}")
    return Use(wall, ended[2].ru_utime + ended[2].ru_stime, peak)


def _peak_memory(process: int) -> int:
    """The peak of a process's resident memory so far, in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def uses(rounds: int) -> dict[str, list[Use]]:
    """Time and memory of every command, by its name, in each round; a first one, not kept, fills the file cache."""
    taken: dict[str, list[Use]] = {}
    for _ in range(rounds + 1):
        for name, words in COMMANDS.items():
            taken.setdefault(name, []).append(measure(words))
        with tempfile.TemporaryDirectory() as out:
            words = ("pretrain", "vilt.tiny", "--data", "scenes:64", "--steps", "1", "--out", f"{out}/run")
            taken.setdefault(FIRST_STEP, []).append(measure(words, until="step 1/"))
    return {name: each[1:] for name, each in taken.items()}


def rows(rounds: int) -> list[dict[str, Any]]:
    """A row for each command: the median of its wall seconds; CPU seconds and memory are in the note."""
    return [
        {
            "work": name,
            "ours_s": median(use.wall_s for use in each),
            "unit": "s, wall",
            "rounds": rounds,
            "note": f"{median(use.cpu_s for use in each):.2f} CPU s, "
            f"peak memory {max(use.memory for use in each) / 2**20:,.0f} MiB",
        }
        for name, each in uses(rounds).items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.start_up", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    print("| command | wall s | CPU s and memory |\n| --- | ---: | --- |")
    for row in rows(parser.parse_args().rounds):
        print(f"| `{row['work']}` | {row['ours_s']:.2f} | {row['note']} |")


if __name__ == "__main__":
    main()
