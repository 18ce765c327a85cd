"""The model of docs/adding-a-model.md: three files and two lines, in a copy of the package, are a system."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.copied_package import ROOT, copy_package, run_copy

DOCUMENT = ROOT / "docs" / "adding-a-model.md"
IMPORT = "from diptych.models.mean_pair.config import MeanPairConfig"
RUN = "--data scenes:40 --batch_size 8 --workers 0 --device cpu --precision fp32"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package with the model's folder, and the lines that the document says in models/configs.py."""
    copy_package(tmp_path)
    folder = tmp_path / "diptych" / "models" / "mean_pair"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for file in (ROOT / "tests" / "own_model").glob("*.py"):
        shutil.copy(file, folder)
    configs = tmp_path / "diptych" / "models" / "configs.py"
    text = configs.read_text()
    assert text.count("from diptych.models.scan import config as scan\n") == text.count("    | SCANConfig\n") == 1
    text = text.replace("from diptych.models.scan import", f"{IMPORT}\nfrom diptych.models.scan import", 1)
    configs.write_text(text.replace("    | SCANConfig\n", "    | MeanPairConfig\n    | SCANConfig\n", 1))
    return tmp_path


@pytest.mark.slow
def test_the_model_of_the_document_trains_and_is_evaluated(package: Path):
    diptych = partial(run_copy, package)
    assert "mean_pair.tiny" in diptych("pretrain --help")
    assert "encode_text" in diptych("info mean_pair.tiny")
    diptych(f"pretrain mean_pair.tiny {RUN} --steps 3 --out run")
    diptych("evaluate run --task retrieval --data scenes:40 --workers 0 --device cpu --precision fp32")
    (metrics,) = package.glob("run/evaluate-*/metrics.json")
    assert 0 <= json.loads(metrics.read_text())["metrics"]["text to image R@1"] <= 1


def test_the_document_names_the_lines():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert IMPORT in text and "| MeanPairConfig" in text
