"""CapFilt killed by SIGKILL and resumed, and run by several processes: the output is the same."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from diptych.capfilt.corrupt_captions import corrupt_captions
from diptych.capfilt.run import capfilt
from diptych.config.capfilt import CapFilt, CorruptCaptions
from tests.capfilt.tiny_capfilt import files, rows, saved
from tests.runs.tiny_runs import ENVIRONMENT, kill_all, start_python

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CapFilt:
    """48 scenes in six tars, with captions of others among theirs."""
    folder = tmp_path_factory.mktemp("killed")
    corrupt_captions(CorruptCaptions(data="scenes:48", shard_size=8), folder / "noised")
    role = saved(folder / "blip")
    data = str(folder / "noised" / "train-{00000..00005}.tar")
    return CapFilt(data, role, role, min_itm=0.3, batch_size=3, workers=0, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def whole(config: CapFilt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    capfilt(config, out)
    return out


def words(config: CapFilt, out: Path, *more: str) -> list[str]:
    names = ("min_itm", "batch_size", "workers", "device", "precision", "captioner", "filter")
    fields = [word for name in names for word in (f"--{name}", str(getattr(config, name)))]
    return ["-m", "diptych", "capfilt", config.data, *fields, "--out", str(out), *more]


def killed(process: subprocess.Popen[str], out: Path, sign: str) -> bool:
    """Kills a run and its processes soon after a new file of that name appears; returns whether it was still running."""
    deadline, before = time.monotonic() + 240, set(out.glob(sign))
    while process.poll() is None and set(out.glob(sign)) <= before and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.02))
    running = process.poll() is None
    kill_all(process)
    return running


@pytest.mark.slow
def test_killed_in_each_pass_it_resumes_to_the_same_bytes(config: CapFilt, whole: Path, tmp_path: Path):
    done = []
    for sign in ("parts/*.jsonl", "parts/*.jsonl*", "*.tar*"):
        assert killed(start_python(*words(config, tmp_path)), tmp_path, sign)
        assert not (tmp_path / "report.html").exists()
        done.append(len(list(tmp_path.glob("parts/*.npy"))))
    assert 1 <= done[0] <= done[1] <= done[2] == 6
    process = start_python(*words(config, tmp_path))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert files(tmp_path) == files(whole)


@pytest.mark.slow
def test_two_killed_and_resumed_ranks_write_the_same_files_as_one(config: CapFilt, whole: Path, tmp_path: Path):
    """Also with other numbers of workers; and one process finishes what two began."""
    command = (*TORCHRUN, *words(config, tmp_path / "two", "--workers", "1"))
    assert killed(start_python(*command), tmp_path / "two", "parts/*.jsonl")
    process = start_python(*command)
    output, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors[-3000:]
    assert output.count("re-captioned") == 1  # only one process prints
    assert files(tmp_path / "two") == files(whole)
    assert killed(start_python(*TORCHRUN, *words(config, tmp_path / "one")), tmp_path / "one", "parts/*.jsonl")
    capfilt(config, tmp_path / "one")
    assert files(tmp_path / "one") == files(whole)


@pytest.mark.slow
def test_workers_and_batch_size_do_not_change_the_output(config: CapFilt, whole: Path, tmp_path: Path):
    capfilt(replace(config, workers=2), tmp_path / "workers")
    assert files(tmp_path / "workers") == files(whole)
    capfilt(replace(config, batch_size=7), tmp_path / "batch")
    summaries = [
        [(r["key"], r["caption"], r["decision"], r["synthetic"]["text"]) for r in rows(out / "decisions.jsonl")]
        for out in (whole, tmp_path / "batch")
    ]
    assert summaries[0] == summaries[1]
    assert json.loads((whole / "summary.json").read_text()) == json.loads(
        (tmp_path / "batch" / "summary.json").read_text()
    )


@pytest.mark.slow
def test_other_ranks_write_nothing_before_the_settings_exist(config: CapFilt, tmp_path: Path):
    other = subprocess.Popen(
        [sys.executable, *words(config, tmp_path)], env=ENVIRONMENT | {"RANK": "1", "WORLD_SIZE": "2"}, start_new_session=True
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not (tmp_path / "parts").is_dir() and other.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(1)
    assert (tmp_path / "parts").is_dir() and not list((tmp_path / "parts").iterdir())
    other.kill()
    other.wait(240)
