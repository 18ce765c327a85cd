"""A golden folder of a system without weights (MixGen): no checkpoint, and texts that must be equal too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from diptych.checkpoints.read import WeightsError
from tests.parity.compare import parity
from tests.parity.goldens import GOLDEN_CASES


@pytest.fixture
def mixgen(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN_CASES / "mixgen", tmp_path / "mixgen"))


def change(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))


def test_it_is_compared_without_a_checkpoint(mixgen: Path):
    report = parity(mixgen)
    assert report.passed and report.system == "mixgen"
    assert report.hashes.keys() == {"config.json", "case.safetensors"}


@pytest.mark.parametrize(("texts", "tensor"), [("texts_mixgen", "image"), ("texts_mixgen_batch", "image_batch")])
def test_another_text_fails(mixgen: Path, texts: str, tensor: str):
    config = json.loads((mixgen / "config.json").read_text())
    change(mixgen, **{texts: [*config[texts][:-1], "a new red car"]})
    failed = [row for row in parity(mixgen).rows if not row.ok]
    assert {row.tensor for row in failed} == {tensor}
    assert all("differ" in row.note for row in failed)


def test_a_model_without_its_checkpoint_raises(mixgen: Path):
    (mixgen / "config.json").write_text('{"num_heads": 4}')
    with pytest.raises(WeightsError, match=r"no checkpoint\.pth"):
        parity(mixgen)
