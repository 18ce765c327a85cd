"""CapFilt killed as a machine that goes down kills it, and shared by torchrun's processes: nobody can tell from what is written."""

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
from tests.runs.tiny_runs import ENVIRONMENT, kill_all

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> CapFilt:
    """48 scenes in six tars, with captions of others among theirs."""
    folder = tmp_path_factory.mktemp("killed")
    corrupt_captions(CorruptCaptions(data="scenes:48", shard_size=8), folder / "noised")
    role = saved(folder / "blip")
    data = str(folder / "noised" / "train-{00000..00005}.tar")
    return CapFilt(data, role, role, min_itm=0.3, batch_size=3, workers=0, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def whole(asked: CapFilt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that nothing happened to."""
    out = tmp_path_factory.mktemp("whole")
    capfilt(asked, out)
    return out


def words(asked: CapFilt, out: Path, *more: str) -> list[str]:
    told = ("match_over", "batch", "workers", "device", "precision", "captioner", "filter")
    fields = [word for name in told for word in (f"--{name}", str(getattr(asked, name)))]
    return ["-m", "diptych", "capfilt", asked.data, *fields, "--out", str(out), *more]


def start(*command: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *command], stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT, start_new_session=True
    )


def killed(process: subprocess.Popen[str], out: Path, sign: str) -> bool:
    """Ends a run, and all its processes, by SIGKILL soon after a new file by that name lies there; whether it still ran."""
    deadline, before = time.monotonic() + 240, set(out.glob(sign))
    while process.poll() is None and set(out.glob(sign)) <= before and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.02))
    running = process.poll() is None
    kill_all(process)
    return running


@pytest.mark.slow
def test_killed_in_each_pass_it_goes_on_to_the_same_bytes(asked: CapFilt, whole: Path, tmp_path: Path):
    done = []
    for sign in ("parts/*.jsonl", "parts/*.jsonl*", "*.tar*"):
        assert killed(start(*words(asked, tmp_path)), tmp_path, sign)
        assert not (tmp_path / "report.html").exists()
        done.append(len(list(tmp_path.glob("parts/*.npy"))))
    assert 1 <= done[0] <= done[1] <= done[2] == 6
    process = start(*words(asked, tmp_path))
    _, complaint = process.communicate(timeout=240)
    assert process.returncode == 0, complaint
    assert files(tmp_path) == files(whole)


@pytest.mark.slow
def test_two_ranks_killed_and_started_again_write_what_one_process_does(asked: CapFilt, whole: Path, tmp_path: Path):
    """With other numbers of loading processes too; and one process finishes what two began."""
    command = (*TORCHRUN, *words(asked, tmp_path / "two", "--workers", "1"))
    assert killed(start(*command), tmp_path / "two", "parts/*.jsonl")
    process = start(*command)
    said, complaint = process.communicate(timeout=280)
    assert process.returncode == 0, complaint[-3000:]
    assert said.count("re-captioned") == 1  # one process speaks
    assert files(tmp_path / "two") == files(whole)
    assert killed(start(*TORCHRUN, *words(asked, tmp_path / "one")), tmp_path / "one", "parts/*.jsonl")
    capfilt(asked, tmp_path / "one")
    assert files(tmp_path / "one") == files(whole)


@pytest.mark.slow
def test_loading_processes_and_batches_change_nothing(asked: CapFilt, whole: Path, tmp_path: Path):
    capfilt(replace(asked, workers=2), tmp_path / "workers")
    assert files(tmp_path / "workers") == files(whole)
    capfilt(replace(asked, batch_size=7), tmp_path / "batch")
    told = [
        [(r["key"], r["caption"], r["decision"], r["synthetic"]["text"]) for r in rows(out / "decisions.jsonl")]
        for out in (whole, tmp_path / "batch")
    ]
    assert told[0] == told[1]
    assert json.loads((whole / "summary.json").read_text()) == json.loads(
        (tmp_path / "batch" / "summary.json").read_text()
    )


@pytest.mark.slow
def test_a_process_that_is_not_the_first_writes_nothing_before_the_folder_says_what_it_is_of(
    asked: CapFilt, tmp_path: Path
):
    other = subprocess.Popen(
        [sys.executable, *words(asked, tmp_path)], env=ENVIRONMENT | {"RANK": "1", "WORLD_SIZE": "2"}, start_new_session=True
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not (tmp_path / "parts").is_dir() and other.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(1)
    assert (tmp_path / "parts").is_dir() and not list((tmp_path / "parts").iterdir())
    other.kill()
    other.wait(240)
