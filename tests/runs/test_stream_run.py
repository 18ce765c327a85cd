"""Runs on a stream of tars: killed and resumed, or on two ranks with FSDP, they equal an uninterrupted run."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.cli import main
from diptych.data.sources.captions import open_captions
from diptych.training.checkpoint import read_training_state
from tests.runs.tiny_runs import ENVIRONMENT, MODEL, kill_all, rows, start_python, started

STEPS = 20


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Fifty scenes in four training tars, one of which is damaged in the middle, and one val tar."""
    folder, scenes = tmp_path_factory.mktemp("tars"), open_captions("scenes:50", "train")
    for shard, name in enumerate(("train-0", "train-1", "train-2", "train-3", "val-0")):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for i in range(10 * shard, 10 * shard + 10):
                png = io.BytesIO()
                scenes.image(i).save(png, "PNG")
                for suffix, data in (("png", png.getvalue()), ("txt", scenes.captions(i)[0].encode())):
                    info = tarfile.TarInfo(f"{i:04d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    damaged = folder / "train-2.tar"
    data, at = damaged.read_bytes(), damaged.read_bytes().index(b"0026.png")
    damaged.write_bytes(data[:at] + b"x" * 512 + data[at + 512 :])
    return str(folder / "{train-{0..3},val-0}.tar")


def command(tars: str, out: Path, *more: str) -> list[str]:
    lanes = ["--streaming.lanes", "2", "--streaming.buffer", "12", "--data", tars]
    training = [
        "--batch_size",
        "8",
        "--steps",
        str(STEPS),
        "--log_every",
        "1",
        "--checkpoint_every",
        "3",
        "--device",
        "cpu",
        "--max_skipped",
        "0.1",  # one tar is damaged
    ]
    run = ["pretrain", "vilt.tiny", *MODEL, "--model.dropout", "0", *training, *lanes, "--precision", "fp32"]
    return [*run, "--workers", "1", "--out", str(out), *more]


@pytest.fixture(scope="module")
def whole(tars: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stream") / "whole"
    assert main(command(tars, out)) == 0
    return out


@pytest.mark.slow
def test_the_damaged_tar_is_listed(whole: Path):
    (row,) = json.loads((whole / "skipped.json").read_text())
    assert "train-2.tar, byte" in str(row) and "the rest is lost" in str(row)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(tars: str, whole: Path, tmp_path: Path):
    process = started(command(tars, tmp_path / "killed"))
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < 4):
        time.sleep(0.001)
    kill_all(process)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "killed" / "report.html").exists()
    assert main(command(tars, tmp_path / "killed")) == 0
    assert rows(tmp_path / "killed") == rows(whole)
    one, other = load_file(tmp_path / "killed" / "model.safetensors"), load_file(whole / "model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(t, other[name]) for name, t in one.items())


@pytest.mark.slow
def test_two_ranks_with_fsdp_equal_one_process(tars: str, whole: Path, tmp_path: Path):
    """Includes the report, which only one rank computes; and one process resumes their finished run."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "diptych"]
    more = ["--parallel", "fsdp", "--activation_checkpointing", "True"]
    arguments = [*torchrun, *command(tars, tmp_path / "two", *more)]
    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 tars of" in done.stdout and "in 2 lanes" in done.stdout and (tmp_path / "two" / "report.html").exists()
    shutil.copytree(tmp_path / "two", tmp_path / "finished")
    assert main(command(tars, tmp_path / "finished")) == 0
    for out in (tmp_path / "two", tmp_path / "finished"):
        for row, other in zip(rows(out), rows(whole), strict=True):
            assert row == pytest.approx(other, rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_killed_run_resumes_on_another_number_of_ranks(
    tars: str, whole: Path, tmp_path: Path, before: int, after: int
):
    def ranks(n: int) -> subprocess.Popen[str]:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
        return start_python(*(torchrun if n > 1 else []), "-m", "diptych", *command(tars, tmp_path))

    process, metrics = ranks(before), tmp_path / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < 4):
        time.sleep(0.001)
    assert process.poll() is None
    kill_all(process)
    state = read_training_state(tmp_path)
    assert state and set(state["cursor"]) == {"0", "1"} and 0 < state["step"] < STEPS
    process = ranks(after)
    output, errors = process.communicate(timeout=280)
    assert process.returncode == 0 and f"resumes at step {state['step']}" in output, errors[-3000:]
    for row, other in zip(rows(tmp_path), rows(whole), strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert (tmp_path / "skipped.json").read_text() == (whole / "skipped.json").read_text()
