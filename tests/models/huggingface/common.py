"""Helpers of the tests of Hugging Face's layouts: export of a golden, loading by transformers, and comparison."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.checkpoints.adapter import config_of
from diptych.config.data import ImageSettings
from diptych.inference.folder import write_config
from diptych.inference.saved_model import Imported, SavedModel
from diptych.models.importing import ADAPTERS
from diptych.runs.export import export
from diptych.training.checkpoint import save_weights
from tests.parity.compare import compare
from tests.parity.golden_case import Golden, Recomputed, read_golden
from tests.parity.goldens import GOLDEN_CASES


def golden(name: str) -> Golden:
    folder = (
        GOLDEN_CASES / name if (GOLDEN_CASES / name).is_dir() else Path(os.environ.get("DIPTYCH_GOLDENS", "")) / name
    )
    if not folder.is_dir():
        pytest.skip(f"set DIPTYCH_GOLDENS to the folder of golden cases to check {name}")
    return read_golden(folder)


def exported(system: str, task: str, arguments: Mapping[str, Any], step: nn.Module, folder: Path) -> list[str]:
    """Writes a folder of these weights as an import does, and its export for Hugging Face; notes on weights left out."""
    saved = SavedModel(
        model=config_of(ADAPTERS[system].config_class, arguments),
        images=ImageSettings(),
        task=task,
        imported=Imported(system=system, task=task, checkpoint="checkpoint.pth"),
    )
    write_config(folder / "run", saved)
    save_weights(folder / "run", step)
    left_out = export(folder / "run", "hf", folder / "hf").left_out
    return [part for part in left_out if not part.startswith("the tokenizer (its vocabulary is unknown")]


def loaded(kind: str, folder: Path) -> Any:
    """The transformers model of a folder, which must have exactly its weights."""
    transformers = pytest.importorskip("transformers")
    model, info = getattr(transformers, kind).from_pretrained(folder / "hf", output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def equal(case: Golden, outputs: Mapping[str, Tensor]) -> None:
    rows = [compare(name, "padded", case.expected[name], Recomputed(value)) for name, value in outputs.items()]
    assert rows and all(row.ok for row in rows), rows


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
