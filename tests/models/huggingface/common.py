"""What the tests of Hugging Face's layouts share: a golden, exported; their class, loaded; and how both compare."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.config.run import ImportedCheckpoint
from diptych.runs.export import export
from diptych.runs.run_folder import write_run
from diptych.training.checkpoint import save_weights
from tests.parity.compare import compare
from tests.parity.golden_case import Answer, Golden, read_golden
from tests.parity.goldens import GOLDEN_CASES


def golden(name: str) -> Golden:
    folder = (
        GOLDEN_CASES / name if (GOLDEN_CASES / name).is_dir() else Path(os.environ.get("DIPTYCH_GOLDENS", "")) / name
    )
    if not folder.is_dir():
        pytest.skip(f"set DIPTYCH_GOLDENS to the folder of golden cases to check {name}")
    return read_golden(folder)


def exported(system: str, task: str, arguments: Mapping[str, Any], step: nn.Module, folder: Path) -> list[str]:
    """A run's folder of these weights, and Hugging Face's beside it; gives what was left out."""
    run = ImportedCheckpoint(system, task, dict(arguments), "checkpoint.pth")
    write_run(folder / "run", run, {"imported": "checkpoint.pth"})
    save_weights(folder / "run", step)
    return export(folder / "run", "hf", folder / "hf")


def loaded(kind: str, folder: Path) -> Any:
    """Their class, every weight of which the folder must have, and no other."""
    transformers = pytest.importorskip("transformers")
    model, told = getattr(transformers, kind).from_pretrained(folder / "hf", output_loading_info=True)
    assert not any(told.values()), told
    return model.eval()


def equal(case: Golden, found: Mapping[str, Tensor]) -> None:
    rows = [compare(name, "padded", case.expected[name], Answer(value)) for name, value in found.items()]
    assert rows and all(row.ok for row in rows), rows


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
