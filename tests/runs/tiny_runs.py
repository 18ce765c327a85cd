"""Tiny runs for tests: a ViLT of width 16 on fifty synthetic scenes, started through the command line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diptych.cli import main
from diptych.training.log import TIME_FIELDS

MODEL = [
    "--model.dim",
    "16",
    "--model.depth",
    "1",
    "--model.num_heads",
    "2",
    "--model.mlp_dim",
    "32",
    "--model.text_length",
    "24",
]
EXACT = ["--precision", "fp32", "--device", "cpu"]  # the same results on every machine
TRAINING = [
    "--data",
    "scenes:50",
    "--batch_size",
    "8",
    "--log_every",
    "1",
    "--checkpoint_every",
    "3",
    *EXACT,
]
STEPS = 24
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def pretrain(out: Path, *more: str, dropout: float = 0.1, steps: int = STEPS) -> list[str]:
    """Command-line arguments of a tiny pre-training run."""
    run = ["pretrain", "vilt.tiny", *MODEL, "--model.dropout", str(dropout), *TRAINING, "--steps", str(steps)]
    return [*run, "--out", str(out), *more]


def started(arguments: list[str]) -> subprocess.Popen[str]:
    """`diptych ARGUMENTS` in a process and a process group of its own."""
    command = [sys.executable, "-m", "diptych", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT, start_new_session=True)


def kill_all(process: subprocess.Popen[str]) -> None:
    """Sends SIGKILL to a process and its descendants, as when a machine goes down.

    torchrun's ranks are process groups of their own, so the group alone is not enough. All are stopped first: a process
    that still ran could start another one meanwhile.
    """
    stopped: list[int] = []
    while running := [pid for pid in _descendants(process.pid) if pid not in stopped]:
        for pid in running:
            _signal(pid, signal.SIGSTOP)
        stopped += running
    for pid in stopped:
        _signal(pid, signal.SIGKILL)
    process.communicate(timeout=240)


def _descendants(pid: int) -> list[int]:
    """The process and all its descendants, from /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def finished(arguments: list[str]) -> str:
    """Standard output of a command that must succeed."""
    process = started(arguments)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return output


def rows(out: Path, timed: bool = False) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, without the fields of time unless `timed`."""
    all_rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return all_rows if timed else [{k: v for k, v in row.items() if k not in TIME_FIELDS} for row in all_rows]


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training run that was never interrupted, with dropout and one data worker."""
    out = tmp_path_factory.mktemp("runs") / "never-killed"
    output = finished(pretrain(out, "--workers", "1"))
    assert "0.0 M parameters" in output and "250 examples of scenes:50 (train)" in output and f"{STEPS} steps" in output
    assert output.splitlines()[-1].startswith(str(out / "report.html"))
    return out


@pytest.fixture(scope="session")
def vqa(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run fine-tuned for VQA and evaluated on its training split."""
    out = tmp_path_factory.mktemp("runs") / "vqa"
    training = [*TRAINING, "--steps", "4", "--workers", "0"]
    assert main(["finetune", "vqa", "--from", str(pretrained), *training, "--out", str(out)]) == 0
    assert main(["evaluate", str(out), "--split", "train", "--workers", "0", *EXACT]) == 0
    return out
