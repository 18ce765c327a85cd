"""Tiny runs for tests: a ViLT of width 16 on fifty synthetic scenes, started through the command line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diptych.cli import main
from diptych.config.run import Finetune, Pretrain
from diptych.inference.loaded_model import LoadedModel
from diptych.runs import build, finetune
from diptych.runs.run_folder import saved_model, write_run
from diptych.tasks.definition import Labels
from diptych.training.checkpoint import save_weights
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
MARK = "DIPTYCH_TEST_PROCESS"
_marks: dict[int, bytes] = {}  # by process id


def pretrain(out: Path, *more: str, dropout: float = 0.1, steps: int = STEPS) -> list[str]:
    """Command-line arguments of a tiny pre-training run."""
    run = ["pretrain", "vilt.tiny", *MODEL, "--model.dropout", str(dropout), *TRAINING, "--steps", str(steps)]
    return [*run, "--out", str(out), *more]


def write_model(out: Path, run: Pretrain | Finetune, module: nn.Module, labels: Sequence[str] = ()) -> Path:
    """The folder of a run with the weights of `module`, as training leaves it; `labels`: answers or classes."""
    write_run(out, run, {}, tuple(getattr(module, "heads", ())), tuple(labels))
    save_weights(out, module)
    return out


def untrained(run: Pretrain | Finetune, labels: Sequence[str] = ()) -> nn.Module:
    """The module that a run trains, with initial weights."""
    return finetune.build(run, Labels(tuple(labels))) if isinstance(run, Finetune) else build.build(run, guided=False)


def loaded_from(run: Pretrain | Finetune, module: nn.Module, labels: Sequence[str] = ()) -> LoadedModel:
    """The model of a run with the weights of `module`, as it would be loaded from a folder."""
    saved = saved_model(run, tuple(getattr(module, "heads", ())), tuple(labels))
    return LoadedModel(saved, module.eval(), torch.device("cpu"))


def started(arguments: list[str]) -> subprocess.Popen[str]:
    """`diptych ARGUMENTS` in a process and a process group of its own."""
    return start_python("-m", "diptych", *arguments)


def start_python(*arguments: str) -> subprocess.Popen[str]:
    """`python ARGUMENTS` in a process group of its own, whose processes `kill_all` can find by a mark in their environment."""
    environment = ENVIRONMENT | {MARK: uuid.uuid4().hex}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    _marks[process.pid] = f"{MARK}={environment[MARK]}".encode()
    return process


def kill_all(process: subprocess.Popen[str]) -> None:
    """Sends SIGKILL to a process of `start_python` and to all that it started, as when a machine goes down.

    torchrun's ranks are process groups of their own, a child may have lost its parent, and one that is being forked is not
    listed yet: so the processes are found by their environment, again and again until none is left.
    """
    deadline, seen_none = time.monotonic() + 60, 0
    while seen_none < 2:
        assert time.monotonic() < deadline, "a killed process does not end"
        running = _marked(_marks[process.pid])
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()  # a child that ended stays listed until its parent has its exit status
        seen_none = 0 if running else seen_none + 1
    process.communicate(timeout=60)


def _marked(mark: bytes) -> list[int]:
    """Processes whose environment holds the mark, from /proc; one that has ended has no environment."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                pids.append(int(path.parent.name))
    return pids


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
    assert main(["finetune", "vqa", "--init_from", str(pretrained), *training, "--out", str(out)]) == 0
    assert main(["evaluate", str(out), "--split", "train", "--workers", "0", *EXACT]) == 0
    return out
