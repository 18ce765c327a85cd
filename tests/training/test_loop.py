"""The training loop end to end: killed and resumed, interrupted, divided into ranks and micro-batches, errors."""

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych.checkpoints.digests import CheckpointError
from diptych.data.sources.base import DataError, WorkerDied
from diptych.training.checkpoint import CHECKPOINT, MODEL, PREVIOUS, STATE, read_training_state
from diptych.training.diagnostics import Diverged
from diptych.training.log import TIME_FIELDS
from diptych.training.loop import fit
from diptych.training.recovery import DAMAGED
from tests.training.toy import Toy, micro, run, settings, stream

TOY = ("-m", "tests.training.toy")


def rows(out: Path) -> list[dict]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIME_FIELDS} for line in lines]


def same_tensors(a: Path, b: Path) -> None:
    x, y = load_file(a), load_file(b)
    assert x.keys() == y.keys()
    for name in x:
        assert torch.equal(x[name], y[name]), name


def toy_process(out: Path, kill_at: int = -1, interrupt_at: int = -1) -> subprocess.CompletedProcess:
    command = [sys.executable, *TOY, str(out), "0.2", str(kill_at), str(interrupt_at)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    assert toy_process(out).returncode == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [2, 13])  # before the first checkpoint, and between two others
def test_a_killed_run_ends_with_the_same_bits(tmp_path, whole, one_thread, kill_at):
    assert toy_process(tmp_path, kill_at=kill_at).returncode == -signal.SIGKILL
    assert (tmp_path / CHECKPOINT).exists() == (kill_at == 13)
    assert rows(tmp_path) != rows(whole)
    run(tmp_path, Toy(dropout=0.2), settings())
    same_tensors(tmp_path / CHECKPOINT, whole / CHECKPOINT)
    same_tensors(tmp_path / MODEL, whole / MODEL)
    assert rows(tmp_path) == rows(whole)
    for name in ("skipped.json", "diagnostics.json"):
        assert (tmp_path / name).read_text() == (whole / name).read_text()


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_saves_and_prints_how_to_resume(tmp_path, whole, one_thread):
    stopped = toy_process(tmp_path, interrupt_at=9)
    assert stopped.returncode == 130
    assert "stopped at step 10" in stopped.stdout and "same command" in stopped.stdout
    run(tmp_path, Toy(dropout=0.2), settings())
    same_tensors(tmp_path / CHECKPOINT, whole / CHECKPOINT)
    assert rows(tmp_path) == rows(whole)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.slow
def test_in_either_precision_an_interrupted_run_ends_with_the_same_bits(tmp_path, one_thread, precision):
    cfg = settings(precision=precision)
    run(tmp_path / "whole", Toy(dropout=0.2), cfg)
    with pytest.raises(SystemExit):
        run(tmp_path / "cut", Toy(dropout=0.2), cfg, interrupt_at=9)
    run(tmp_path / "cut", Toy(dropout=0.2), cfg)
    same_tensors(tmp_path / "cut" / CHECKPOINT, tmp_path / "whole" / CHECKPOINT)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("signalled", [True, False])
def test_a_run_whose_workers_got_the_signal_too_is_saved(tmp_path, whole, one_thread, capfd, signalled):
    def dying(start: int):
        yield from islice(stream(settings())(start), 9)
        if signalled:
            os.kill(os.getpid(), signal.SIGTERM)
        raise WorkerDied("gone")

    with pytest.raises(SystemExit, match="130") if signalled else pytest.raises(WorkerDied):
        fit(Toy(dropout=0.2), dying, settings(), tmp_path, evaluate=lambda _: {"val/first": 0.0})
    if signalled:
        assert "stopped at step 9, saved in" in capfd.readouterr().out
    assert checkpoint_step(tmp_path) == (9 if signalled else 8)


def test_a_signal_before_the_first_step_prevents_it(tmp_path, capfd):
    def telling(start: int):
        os.kill(os.getpid(), signal.SIGTERM)
        return stream(settings())(start)

    with pytest.raises(SystemExit) as error:
        fit(Toy(), telling, settings(), tmp_path)
    assert error.value.code == 130 and "stopped before a step was made" in capfd.readouterr().out
    assert not (tmp_path / CHECKPOINT).exists()


def checkpoint_step(out: Path) -> int:
    state = read_training_state(out)
    assert state is not None
    return state["step"]


def test_a_finished_run_is_not_changed(tmp_path):
    names = (CHECKPOINT, MODEL, "metrics.jsonl", "diagnostics.json")
    run(tmp_path, Toy(unused=True), settings())
    before = [(tmp_path / name).read_bytes() for name in names]
    run(tmp_path, Toy(unused=True), settings())
    assert [(tmp_path / name).read_bytes() for name in names] == before
    subjects = {f["subject"] for f in json.loads((tmp_path / "diagnostics.json").read_text())["findings"]}
    assert subjects == {"itm", "2 parameters (spare.weight, spare.bias)"}


def test_damaged_weights_of_an_unfinished_run_are_written_again(tmp_path):
    with pytest.raises(SystemExit):
        run(tmp_path, Toy(), settings(), interrupt_at=9)
    saved = (tmp_path / MODEL).read_bytes()
    for bad in (b"", saved[:-1], flipped(saved, 8 * len(saved) - 1)):
        (tmp_path / MODEL).write_bytes(bad)
        with pytest.raises(StopIteration):
            fit(Toy(), lambda start: iter(()), settings(), tmp_path)
        assert (tmp_path / MODEL).read_bytes() == saved


def test_weights_of_a_finished_run_are_written_only_if_they_are_missing(tmp_path):
    run(tmp_path, Toy(), settings())
    saved = (tmp_path / MODEL).read_bytes()
    save_file({name: torch.zeros_like(t) for name, t in load_file(tmp_path / MODEL).items()}, tmp_path / MODEL)
    others = (tmp_path / MODEL).read_bytes()
    run(tmp_path, Toy(), settings())
    assert (tmp_path / MODEL).read_bytes() == others
    (tmp_path / MODEL).write_bytes(flipped(saved, 8 * len(saved) - 9))
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is damaged.*remove it, and the same command writes it"
    ):
        run(tmp_path, Toy(), settings())
    assert (tmp_path / MODEL).read_bytes() == flipped(saved, 8 * len(saved) - 9)
    (tmp_path / MODEL).unlink()
    run(tmp_path, Toy(), settings())
    assert (tmp_path / MODEL).read_bytes() == saved


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_previous_one_and_ends_with_the_same_bits(
    tmp_path, whole_here, capsys, finished
):
    with nullcontext() if finished else pytest.raises(SystemExit):
        run(tmp_path, Toy(), settings(), interrupt_at=-1 if finished else 9)
    before = 16 if finished else 8
    data = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(flipped(data, 8 * len(data) - 100))
    capsys.readouterr()
    run(tmp_path, Toy(), settings())
    line = capsys.readouterr().out.splitlines()[0]
    assert f"is damaged: its tensors are not what was written (kept as {DAMAGED})" in line
    assert f"going on from the checkpoint before it, of step {before}" in line
    assert checkpoint_step(tmp_path) == 20
    same_tensors(tmp_path / CHECKPOINT, whole_here / CHECKPOINT)
    assert (tmp_path / MODEL).read_bytes() == (whole_here / MODEL).read_bytes()
    assert rows(tmp_path) == rows(whole_here)


@pytest.fixture(scope="module")
def whole_here(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole-here")
    run(out, Toy(), settings())
    return out


def test_a_kill_between_the_renames_keeps_the_previous_checkpoint(tmp_path, whole_here, capsys):
    run(tmp_path, Toy(), settings())
    (tmp_path / CHECKPOINT).unlink()
    run(tmp_path, Toy(), settings())
    assert "is missing: going on from the checkpoint before it, of step 16" in capsys.readouterr().out
    same_tensors(tmp_path / CHECKPOINT, whole_here / CHECKPOINT)


def test_two_damaged_checkpoints_or_one_without_a_previous_one_are_errors(tmp_path):
    run(tmp_path, Toy(), settings())
    for name in (CHECKPOINT, PREVIOUS):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(flipped(data, 8 * len(data) - 100))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.safetensors is damaged.*previous\.safetensors is damaged.*too"
    ):
        run(tmp_path, Toy(), settings())
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(CheckpointError, match="none before it is there: remove it to begin anew"):
        run(tmp_path, Toy(), settings())
    del before[PREVIOUS]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.slow
def test_an_interrupted_run_keeps_its_findings(tmp_path):
    run(tmp_path / "whole", Toy(unused=True), settings())
    with pytest.raises(SystemExit):
        run(tmp_path / "cut", Toy(unused=True), settings(), interrupt_at=9)
    run(tmp_path / "cut", Toy(unused=True), settings())
    findings = [(tmp_path / name / "diagnostics.json").read_text() for name in ("whole", "cut")]
    assert findings[0] == findings[1] and findings[0].count('"unused"') == 1


def close(a: Path, b: Path) -> None:
    x, y = rows(a), rows(b)
    assert len(x) == len(y) > 5
    for left, right in zip(x, y, strict=True):
        assert left == pytest.approx(right, rel=1e-4, abs=1e-6)
    for name, t in load_file(a / MODEL).items():
        torch.testing.assert_close(t, load_file(b / MODEL)[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_ranks_or_two_micro_batches_equal_one(tmp_path):
    run(tmp_path / "one", Toy(), settings())
    run(tmp_path / "cut", Toy(), settings(grad_accum=2))
    close(tmp_path / "one", tmp_path / "cut")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *TOY]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "two"), "0", "-1", "-1"], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    close(tmp_path / "one", tmp_path / "two")


def test_nan_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(Diverged, match=r"step 11: itm: is nan"):
        run(tmp_path, Toy(nan_at=10), settings())
    assert all(t.isfinite().all() for t in load_file(tmp_path / MODEL).values())
    assert json.loads((tmp_path / "diagnostics.json").read_text())["findings"][-1]["verdict"] == "not finite"


def test_an_unused_parameter_is_reported(tmp_path):
    run(tmp_path, Toy(unused=True), settings(steps=2))
    findings = json.loads((tmp_path / "diagnostics.json").read_text())["findings"]
    assert [f["subject"] for f in findings if f["verdict"] == "unused"] == ["2 parameters (spare.weight, spare.bias)"]


def test_no_loss_is_stuck_before_twenty_steps(tmp_path):
    run(tmp_path, Toy(), settings(steps=2, patience=1))
    assert json.loads((tmp_path / "diagnostics.json").read_text())["patience"] >= 20


def test_a_run_with_another_seed_or_model_is_an_error_that_names_the_field(tmp_path):
    run(tmp_path, Toy(), settings(steps=4), fingerprint={"model": {"dim": 16}})
    with pytest.raises(CheckpointError, match=r"seed = 0, not 1"):
        run(tmp_path, Toy(), settings(steps=4, seed=1), fingerprint={"model": {"dim": 16}})
    with pytest.raises(CheckpointError, match=r"model\.dim = 16, not 32"):
        run(tmp_path, Toy(), settings(steps=4), fingerprint={"model": {"dim": 32}})
    with pytest.raises(CheckpointError, match=r"steps = 4, not 5"):
        run(tmp_path, Toy(), settings(steps=5), fingerprint={"model": {"dim": 16}})
    with pytest.raises(CheckpointError, match=r"grad_accum = 1, not 2"):  # losses compare the samples of a micro-batch
        run(tmp_path, Toy(), settings(steps=4, grad_accum=2), fingerprint={"model": {"dim": 16}})


def test_a_run_from_before_a_field_existed_has_its_default(tmp_path):
    run(tmp_path, Toy(), settings(steps=4), fingerprint={"model": {"dim": 16}})
    stored = {"model": {"dim": 8, "gated": False}}
    run(tmp_path, Toy(), settings(steps=4), fingerprint={"model": {"dim": 16, "gated": False}}, defaults=stored)
    for model, message in (
        ({"dim": 16, "gated": True}, r"model\.gated = False, not True"),
        ({"dim": 8, "gated": False}, r"model\.dim = 16, not 8"),
        ({"dim": 16, "gated": False, "deep": 1}, r"model\.deep = \(no such field\), not 1"),
        ({"gated": False}, r"model\.dim = 16, not \(no such field\)"),
    ):
        with pytest.raises(CheckpointError, match=message):
            run(tmp_path, Toy(), settings(steps=4), fingerprint={"model": model}, defaults=stored)


def test_a_part_that_one_of_two_runs_lacks_is_named_as_a_whole(tmp_path):
    without, given = {"itc": None, "mlm": None}, {"itc": {"form": "softmax", "weight": 1.0}, "mlm": None}
    run(tmp_path / "given", Toy(), settings(steps=4), fingerprint={"objectives": given})
    run(tmp_path / "without", Toy(), settings(steps=4), fingerprint={"objectives": without})
    for folder, objectives, message in (
        ("given", without, r"objectives\.itc = \(with settings\), not none: continue"),
        ("without", given, r"objectives\.itc = none, not \(with settings\): continue"),
        ("without", without | {"mlm": {"rate": 0.3}}, r"objectives\.mlm = none, not \(with settings\): continue"),
        ("given", given | {"itc": {"form": "sigmoid", "weight": 1.0}}, r"objectives\.itc\.form = softmax, not sigmoid"),
    ):
        with pytest.raises(CheckpointError, match=message):
            fingerprint, stored = {"objectives": objectives}, {"objectives": without}
            run(tmp_path / folder, Toy(), settings(steps=4), fingerprint=fingerprint, defaults=stored)


def test_another_version_of_the_settings_is_an_error(tmp_path, monkeypatch):
    run(tmp_path, Toy(), settings(steps=4))
    monkeypatch.setattr("diptych.config.training.VERSION", 2)
    with pytest.raises(CheckpointError, match=r"version = 1, not 2"):
        run(tmp_path, Toy(), settings(steps=4))


def test_too_many_bad_samples_stop_the_run(tmp_path):
    bad = settings(max_skipped=0.01, steps=40)
    with pytest.raises(DataError, match="could not be used"):
        fit(Toy(), lambda start: ([micro([97 * i for i in range(16)], 0, s)] for s in range(start, 40)), bad, tmp_path)


@pytest.mark.parametrize(
    ("steps", "every", "due"), [(20, 200, [10, 20]), (1, 200, [1]), (7, 3, [3, 6, 7]), (400, 200, [200, 400])]
)
def test_a_run_saves_at_its_end_and_at_least_once_before(steps, every, due):
    cfg = settings(steps=steps, checkpoint_every=every)
    assert [done for done in range(1, steps + 1) if cfg.saves(done)] == due


@pytest.mark.parametrize(("minutes", "kept"), [(5.0, 0), (1e-9, 3)])
def test_a_checkpoint_is_also_due_by_the_clock(tmp_path, minutes, kept):
    slow = settings(checkpoint_every=200, checkpoint_minutes=minutes)

    def ending(start: int):
        yield from islice(stream(slow)(start), 3)
        raise DataError("the data has gone")

    with pytest.raises(DataError):
        fit(Toy(), ending, slow, tmp_path)
    assert (read_training_state(tmp_path) or {"step": 0})["step"] == kept


def test_checkpoint_minutes_must_be_positive():
    with pytest.raises(ValueError, match=r"checkpoint_minutes must be in \(0, "):
        settings(checkpoint_minutes=0)


def test_a_damaged_training_state_is_a_one_line_error(tmp_path):
    run(tmp_path, Toy(), settings())
    tensors = load_file(tmp_path / CHECKPOINT)
    (tmp_path / PREVIOUS).unlink()
    for state in ("", "[]", '{"step": "1"}', "[" * 5000, '{"step": 20}'):
        save_file(tensors, tmp_path / CHECKPOINT, {STATE: state})  # without a digest, as older versions wrote it
        with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors, its state: ") as error:
            run(tmp_path, Toy(), settings())
        assert "\n" not in str(error.value)
