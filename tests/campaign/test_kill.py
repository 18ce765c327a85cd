"""Runs that are killed repeatedly at random moments end with the same bits as an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.capfilt.corrupt_captions import corrupt_captions
from diptych.config.capfilt import CorruptCaptions
from tests.campaign.fuzz import machine
from tests.campaign.test_fuzz import RECORDS, SEED
from tests.capfilt.tiny_capfilt import files, saved
from tests.runs.tiny_runs import TRAINING, finished, kill_all, pretrain, rows, started

KILLS = int(os.environ.get("DIPTYCH_CAMPAIGN_KILLS", "10"))  # for each kind of run
LEAST = 0.2  # fraction of a run's time; before it the process is only starting

Same = Callable[[Path, Path], bool]


def same_run(one: Path, other: Path) -> bool:
    a, b = (load_file(run / "checkpoint.safetensors") for run in (one, other))
    same = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    weights = [(run / "model.safetensors").read_bytes() for run in (one, other)]
    return same and weights[0] == weights[1] and rows(one) == rows(other)


def same_files(one: Path, other: Path) -> bool:
    return files(one) == files(other)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Six tars with corrupted captions, and the run that is captioner and filter."""
    folder = tmp_path_factory.mktemp("captions")
    corrupt_captions(CorruptCaptions(data="scenes:48", shard_size=8), folder / "noised")
    return str(folder / "noised" / "train-{00000..00005}.tar"), saved(folder / "blip")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that fine-tuning is initialised from."""
    out = tmp_path_factory.mktemp("before") / "run"
    finished(pretrain(out, "--workers", "0", steps=2))
    return out


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["pretrain", "finetune", "capfilt"])
def test_killed_at_random_moments_it_ends_in_the_same_bits(
    kind: str, before: Path, shards: tuple[str, str], tmp_path: Path
):
    data, role = shards
    commands: dict[str, tuple[Callable[[Path], list[str]], Same]] = {
        "pretrain": (lambda out: pretrain(out, "--workers", "1", steps=40), same_run),
        "finetune": (
            lambda out: ["finetune", "vqa", "--init_from", str(before), *TRAINING, "--steps", "40", "--workers", "1", "--out", str(out)],
            same_run,
        ),
        "capfilt": (
            lambda out: f"capfilt {data} --captioner {role} --filter {role} --min_itm 0.3 --batch_size 3 --workers 0 --device cpu --precision fp32 --out {out}".split(),
            same_files,
        ),
    }  # fmt: skip
    made, same = commands[kind]
    counts = killed(made, same, tmp_path, random.Random(f"{SEED}/{kind}"))
    if RECORDS:
        about = {"run": kind, "seed": SEED, "date": f"{date.today()}", "machine": machine()}
        (Path(RECORDS) / f"kill {kind}.json").write_text(json.dumps(about | counts, indent=1))
    assert counts["kills"] == KILLS and counts["compared"] >= 1 and counts["equal"] == counts["compared"], counts


def killed(made: Callable[[Path], list[str]], same: Same, folder: Path, draw: random.Random) -> dict[str, float]:
    """Kills a run at random moments of its duration and resumes it by the same command, KILLS times.

    Whenever it ends it is compared with an uninterrupted run, and another one starts. The last one is left to end.
    """
    began = time.monotonic()
    whole, out = folder / "whole", folder / "killed"
    finished(made(whole))
    duration = time.monotonic() - began
    counts = {"kills": 0, "compared": 0, "equal": 0}

    def compare() -> None:
        counts["compared"] += 1
        counts["equal"] += same(out, whole)
        shutil.rmtree(out)

    while counts["kills"] < KILLS:
        process = started(made(out))
        try:
            _, errors = process.communicate(timeout=duration * draw.uniform(LEAST, 1))
            assert process.returncode == 0, errors[-3000:]
            compare()
        except subprocess.TimeoutExpired:
            kill_all(process)
            counts["kills"] += 1
    finished(made(out))
    compare()
    return {**counts, "seconds": round(time.monotonic() - began, 1)}
