"""Runs small enough for a test: a ViLT of width 16 on fifty scenes, as the command line starts them."""

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
EXACT = ["--precision", "fp32", "--device", "cpu"]  # whatever the machine has
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
    """The arguments of a tiny pre-training run."""
    run = ["pretrain", "vilt.tiny", *MODEL, "--model.dropout", str(dropout), *TRAINING, "--steps", str(steps)]
    return [*run, "--out", str(out), *more]


def started(arguments: list[str]) -> subprocess.Popen[str]:
    """The command line in a process, and a process group, of its own."""
    command = [sys.executable, "-m", "diptych", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT, start_new_session=True)


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a process and all that it started, as when a machine goes down: torchrun's ranks are groups of their own.

    All are stopped first: whoever still ran could start another behind our back, which would outlive its parents.
    """
    doomed: list[int] = []
    while found := [one for one in _with_children(process.pid) if one not in doomed]:
        for one in found:
            _signal(one, signal.SIGSTOP)
        doomed += found
    for one in doomed:
        _signal(one, signal.SIGKILL)
    process.communicate(timeout=240)


def _with_children(pid: int) -> list[int]:
    parents = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(place.parent.name)] = int(place.read_text().rpartition(")")[2].split()[1])
    family = [pid]
    for one in family:
        family += [child for child, parent in parents.items() if parent == one]
    return family


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def finished(arguments: list[str]) -> str:
    """What a command that succeeds has said."""
    process = started(arguments)
    said, complaint = process.communicate(timeout=240)
    assert process.returncode == 0, complaint
    return said


def rows(out: Path, timed: bool = False) -> list[dict[str, Any]]:
    """metrics.jsonl, without what tells how long it took."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return found if timed else [{k: v for k, v in row.items() if k not in TIME_FIELDS} for row in found]


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted, with dropout and one data worker."""
    out = tmp_path_factory.mktemp("runs") / "never-killed"
    said = finished(pretrain(out, "--workers", "1"))
    assert "0.0 M parameters" in said and "250 examples of scenes:50 (train)" in said and f"{STEPS} steps" in said
    assert said.splitlines()[-1].startswith(str(out / "report.html"))
    return out


@pytest.fixture(scope="session")
def vqa(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fine-tuned for questions, and scored on what it was trained on."""
    out = tmp_path_factory.mktemp("runs") / "vqa"
    training = [*TRAINING, "--steps", "4", "--workers", "0"]
    assert main(["finetune", "vqa", "--from", str(pretrained), *training, "--out", str(out)]) == 0
    assert main(["evaluate", str(out), "--split", "train", "--workers", "0", *EXACT]) == 0
    return out
