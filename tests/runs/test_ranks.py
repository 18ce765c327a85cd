"""Fine-tuning on two ranks: the losses, validation, best weights and saved weights of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.cli import main
from tests.runs.tiny_runs import ENVIRONMENT, EXACT, MODEL, rows

SMALL = "--model.dim 16 --model.depth 1 --model.num_heads 2 --model.mlp_dim 32 --model.dropout 0"
VIT = f"--recipe vit.base {SMALL} --images.shorter_side 64 --model.patch_size 16 --images.patch_size 16"
VILT = f"--recipe vilt.tiny {' '.join(MODEL)} --model.dropout 0"
TASKS = {
    "vqa": VILT,
    "retrieval": VILT,
    "grounding": VILT,
    "classification": f"{VIT} --model.grid 4 4",
}
PARALLEL = ("ddp", "fsdp")
VALIDATED = 16  # examples: two batches, one of each rank
SCRIPT = f"""
import sys
from diptych.cli import main
from diptych.runs import train
train.VALIDATION_EXAMPLES = {VALIDATED}
for line in sys.argv[1:]:
    assert main(line.split()) == 0
"""


def command(root: Path, task: str, parallel: str) -> str:
    """One step of a task; its validation is compared with no other, so the weights after it are the best."""
    run = f"finetune {task} {TASKS[task]} --data scenes:8 --batch_size 8 --steps 1 --log_every 1 --workers 0"
    run += " --optimizer.name sgd --optimizer.learning_rate 0.1"  # AdamW's first step enlarges rounding errors
    return f"{run} --keep_best {task} --parallel {parallel} {' '.join(EXACT)} --out {root / task}-{parallel}"


def best_values(out: Path) -> dict[str, float]:
    best = json.loads((out / "best.json").read_text())
    return {name: best[name] for name in ("step", "value", "last_step", "last_value", "without_improvement")}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of all tasks on two ranks, replicated and sharded, as TASK-PARALLEL."""
    root = tmp_path_factory.mktemp("ranks")
    (script := root / "finetune_all.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    commands = [command(root, task, parallel) for task in TASKS for parallel in PARALLEL]
    done = subprocess.run([*torchrun, *commands], env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("parameters;") == len(commands), "only the main rank prints"
    return root


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_step_and_its_validation_on_two_ranks_equal_those_of_one(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
):
    monkeypatch.setattr("diptych.runs.train.VALIDATION_EXAMPLES", VALIDATED)
    assert main(command(tmp_path, task, "ddp").split()) == 0
    one = tmp_path / f"{task}-ddp"
    expected, weights = rows(one), load_file(one / "model.safetensors")
    assert [row["step"] for row in expected] == [1, 1] and f"val/{task}" in expected[1]
    best = best_values(one)
    for parallel in PARALLEL:
        out = two / f"{task}-{parallel}"
        for row, other in zip(rows(out), expected, strict=True):
            assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
        assert best_values(out) == pytest.approx(best, rel=1e-4)
        saved = load_file(out / "model.safetensors")
        assert saved.keys() == weights.keys()
        for name in weights:
            torch.testing.assert_close(
                saved[name], weights[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
