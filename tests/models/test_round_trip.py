"""Translation of every official checkpoint to our names and back gives the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diptych.checkpoints.read import load_state_dict
from tests.parity.golden_case import read_golden


@pytest.mark.slow
def test_official_names_are_restored_bit_for_bit(golden_folder: Path):
    if not (golden_folder / "checkpoint.pth").is_file():
        pytest.skip(f"{golden_folder.name} has no weights")
    official = load_state_dict(golden_folder / "checkpoint.pth")
    imported = read_golden(golden_folder).imported
    assert imported is not None
    back = imported.names.to_official(imported.state) | imported.ignored_tensors
    assert set(back) == set(official)
    for name, tensor in official.items():
        assert torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype, name
    assert set(imported.ignored_tensors) <= set(imported.names.ignored)
    assert imported.ignored_tensors.keys() <= imported.ignored.keys()  # each with its reason
