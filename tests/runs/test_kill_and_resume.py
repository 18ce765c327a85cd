"""A run that is killed, stopped or spread over ranks ends in the same weights as an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.cli import main
from tests.runs.tiny_runs import ENVIRONMENT, STEPS, finished, pretrain, rows, started


def killed_after(
    arguments: list[str], out: Path, written: int, signal_: signal.Signals, workers: bool = False
) -> subprocess.Popen[str]:
    """Starts a run and sends it a signal at a random moment after metrics.jsonl has `written` rows.

    Args:
        workers: the data workers get the signal too; with SIGKILL they always do, as when a machine goes down.
    """
    process = started(arguments)
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 240
    before = metrics.read_text().count("\n") if metrics.exists() else 0
    while process.poll() is None and time.monotonic() < deadline:
        now = metrics.read_text().count("\n") if metrics.exists() else 0
        if now >= written and now != before:
            break
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.05))
    assert process.poll() is None, f"the run ended before it could be killed: {process.communicate()}"
    if workers or signal_ is signal.SIGKILL:
        os.killpg(process.pid, signal_)
    else:
        process.send_signal(signal_)
    return process


def same_tensors(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_run_killed_twice_resumes_to_the_same_weights_bit_for_bit(pretrained: Path, tmp_path: Path):
    out = tmp_path / "killed"
    for written in (random.randint(2, 4), random.randint(7, 9)):
        process = killed_after(pretrain(out, "--workers", "1"), out, written, signal.SIGKILL)
        process.communicate(timeout=240)
        assert process.returncode == -signal.SIGKILL
        assert not (out / "report.html").exists()
    assert "resumes at step" in finished(pretrain(out, "--workers", "1"))

    for file in ("model.safetensors", "checkpoint.safetensors"):
        assert same_tensors(out / file, pretrained / file), file
    assert (out / "model.safetensors").read_bytes() == (pretrained / "model.safetensors").read_bytes()
    assert any(name.startswith("exp_avg_sq/") for name in load_file(out / "checkpoint.safetensors"))
    assert rows(out) == rows(pretrained)
    assert [row["step"] for row in rows(out)] == [*range(1, STEPS + 1), STEPS]  # the last row is the validation
    assert {"val/itm", "val/mlm", "val/wpa"} <= rows(out)[-1].keys()


@pytest.mark.slow
@pytest.mark.parametrize(("signal_", "workers"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_a_signal_to_stop_saves_a_checkpoint_and_prints_how_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], signal_: signal.Signals, workers: bool
):
    out, steps = tmp_path / "stopped", 60
    command = pretrain(out, "--workers", "2", steps=steps)
    process = killed_after(command, out, 3, signal_, workers)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert f"saved in {out}: the same command resumes from here" in output.splitlines()[-1]
    stopped = rows(out)[-1]["step"]
    assert 3 <= stopped < steps
    if not workers:  # resuming is tested only once, with workers
        return
    assert main(command) == 0
    assert f"resumes at step {stopped} of {steps}" in capsys.readouterr().out
    assert [row["step"] for row in rows(out)] == [*range(1, steps + 1), steps]


@pytest.mark.slow
def test_two_ranks_equal_one_process_and_two_micro_batches(tmp_path: Path):
    base, two, parts = tmp_path / "one", tmp_path / "two", tmp_path / "parts"
    for out, more in ((base, []), (parts, ["--grad_accum", "2"])):
        assert main(pretrain(out, "--workers", "0", *more, dropout=0.0, steps=5)) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = pretrain(two, "--workers", "0", dropout=0.0, steps=5)
    done = subprocess.run(
        [*torchrun, "-m", "diptych", *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parameters;") == 1  # only one rank prints
    expected = rows(base)
    assert {"itm", "mlm", "wpa", "itm/accuracy", "mlm/accuracy", "grad_norm"} <= expected[0].keys()
    for out in (two, parts):
        assert [row.keys() for row in rows(out)] == [row.keys() for row in expected]
        for row, other in zip(rows(out), expected, strict=True):
            assert row == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_a_finished_run_started_again_is_unchanged(pretrained: Path, capsys: pytest.CaptureFixture[str]):
    files = ("model.safetensors", "checkpoint.safetensors", "metrics.jsonl", "run.json", "config.json")
    before = [(pretrained / name).read_bytes() for name in files]
    assert main(pretrain(pretrained, "--workers", "1")) == 0
    assert f"has already finished its {STEPS} steps" in capsys.readouterr().out
    assert [(pretrained / name).read_bytes() for name in files] == before


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--seed", "5"], "seed = 0, not 5"),
        (["--model.dim", "32"], "model.dim = 16, not 32"),
        (["--optimizer.learning_rate", "1"], "optimizer.learning_rate = 0.001, not 1.0"),
        (["--data", "scenes:60"], "data = scenes:50, not scenes:60"),
        (["--split", "val"], "split = train, not val"),
        (["--max_patches", "3"], "max_patches = 0, not 3"),
    ],
)
def test_resuming_with_other_settings_is_an_error_and_changes_nothing(
    pretrained: Path, capsys: pytest.CaptureFixture[str], more: list[str], what: str
):
    before = (pretrained / "run.json").read_bytes()
    capsys.readouterr()
    assert main([*pretrain(pretrained), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert what in line and str(pretrained) in line and "another --out" in line
    assert (pretrained / "run.json").read_bytes() == before
