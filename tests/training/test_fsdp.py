"""FSDP on two ranks: the losses of one process, whole checkpoints, and exact resume."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.training.best import BEST_FILE
from diptych.training.checkpoint import CHECKPOINT, MODEL
from diptych.training.log import TIME_FIELDS
from tests.training.teacher import KEEP_BEST, STOP, train, training, validation

SCRIPT = ("-m", "tests.training.teacher")


def rows(out: Path) -> list[dict]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIME_FIELDS} for line in lines]


def assert_close(a: Path, b: Path) -> None:
    for left, right in zip(rows(a), rows(b), strict=True):
        assert left == pytest.approx(right, rel=1e-4, abs=1e-6)
    x, y = load_file(a / CHECKPOINT), load_file(b / CHECKPOINT)
    assert x.keys() == y.keys()
    for name in x:
        torch.testing.assert_close(x[name], y[name], rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("divided")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *SCRIPT,
        str(out),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
def test_two_ranks_equal_one_process(two: Path, tmp_path: Path):
    """Teacher, queue, a 0-d temperature, clipping and AdamW's state among them."""
    train(tmp_path, training(activation_checkpointing=False))
    assert_close(two / "whole", tmp_path)
    saved, wanted = load_file(two / "whole" / MODEL), load_file(tmp_path / MODEL)
    assert {name: t.shape for name, t in saved.items()} == {name: t.shape for name, t in wanted.items()}
    kept = load_file(two / "whole" / CHECKPOINT)
    assert {"weight/queue.image", "weight/student.heads.itc.scale.value"} <= kept.keys()
    clipped = [row["grad_norm"] for row in rows(tmp_path)]
    assert max(clipped) > 1.0, "nothing was clipped, so the test does not cover clipping"


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bits(two: Path):
    for file in (CHECKPOINT, MODEL):
        resumed, expected = load_file(two / "went-on" / file), load_file(two / "whole" / file)
        assert resumed.keys() == expected.keys()
        assert all(torch.equal(t, expected[name]) for name, t in resumed.items())
    assert rows(two / "went-on") == rows(two / "whole")


@pytest.mark.slow
def test_one_process_resumes_a_run_of_two_ranks(two: Path, tmp_path: Path):
    shutil.copytree(two / "stopped", tmp_path / "one")
    assert len(rows(tmp_path / "one")) == STOP
    train(tmp_path / "one", training())
    assert_close(tmp_path / "one", two / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_keep_the_best_weights_of_one_process(two: Path, tmp_path: Path, parallel: str):
    train(tmp_path, training(**KEEP_BEST), evaluate=validation)
    best = json.loads((tmp_path / BEST_FILE).read_text())
    assert (best["step"], best["last_step"]) == (2, 5)
    out = two / f"best-{parallel}"
    assert json.loads((out / BEST_FILE).read_text()) == best
    assert_close(out, tmp_path)
    saved, wanted = load_file(out / MODEL), load_file(tmp_path / MODEL)
    assert saved.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(saved[name], wanted[name], rtol=1e-3, atol=1e-5)
    last = load_file(out / CHECKPOINT)
    assert any(not torch.equal(t, last[f"weight/student.{name}"]) for name, t in saved.items())
