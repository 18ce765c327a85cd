"""Commands import only what they use: torch's sharding and compiler take seconds, and no ordinary run uses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SLOW = ("torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp", "sympy")
RUN = (
    "import sys; from diptych.cli import main; status = main(sys.argv[2:]); "
    "print('imported:', *(name for name in sys.argv[1].split(',') if name in sys.modules)); sys.exit(status)"
)


def imported(names: tuple[str, ...], *words: str) -> list[str]:
    """Those of the modules that a command has imported when it ends."""
    arguments = [sys.executable, "-c", RUN, ",".join(names), *words]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return run.stdout.splitlines()[-1].split()[1:]


@pytest.mark.slow
def test_help_imports_nothing_slow():
    assert imported(("torch", "numpy", "tyro", "PIL"), "--help") == []
    assert imported(("torch", "numpy"), "pretrain", "vilt.tiny", "--help") == []


@pytest.mark.slow
def test_training_and_evaluation_import_neither_sharding_nor_the_compiler(tmp_path: Path):
    small = ("--model.dim", "32", "--model.depth", "1", "--model.num_heads", "2", "--model.mlp_dim", "32")
    run = ("pretrain", "vilt.tiny", "--data", "scenes:20", "--steps", "1", "--batch_size", "8", *small)
    out = str(tmp_path / "run")
    assert imported(("torch", *SLOW), *run, "--out", out) == ["torch"]
    assert imported(("torch", *SLOW), "evaluate", out, "--task", "matching") == ["torch"]
    assert imported(("torch", *SLOW), "info", out) in ([], ["torch"])


@pytest.mark.slow
def test_modules_of_evaluation_and_prediction_import_neither_sharding_nor_the_compiler():
    modules = "diptych.runs.evaluate, diptych.runs.finetune, diptych.runs.load_model, diptych.api, diptych.cli.caption"
    code = f"import sys, {modules}; print(*(name for name in sys.argv[1:] if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code, "torch", *SLOW], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["torch"]
