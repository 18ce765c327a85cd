"""The model of docs/adding-a-model.md: three files and two lines, in a copy of the package, are a system."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "adding-a-model.md"
IMPORT = "from diptych.models.mean_pair.config import MeanPairConfig"
RUN = "--data scenes:40 --batch_size 8 --workers 0 --device cpu --precision fp32"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package with the model's folder, and the lines that the document says in models/configs.py."""
    shutil.copytree(ROOT / "src" / "diptych", tmp_path / "diptych", ignore=shutil.ignore_patterns("__pycache__"))
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
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}

    def diptych(command: str) -> str:
        words = [sys.executable, "-m", "diptych", *command.split()]
        done = subprocess.run(words, cwd=package, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "mean_pair.tiny" in diptych("pretrain --help")
    assert "encode_text" in diptych("info mean_pair.tiny")
    diptych(f"pretrain mean_pair.tiny {RUN} --steps 3 --out run")
    diptych("evaluate run --task retrieval --data scenes:40 --workers 0 --device cpu --precision fp32")
    (metrics,) = package.glob("run/evaluate-*/metrics.json")
    assert 0 <= json.loads(metrics.read_text())["metrics"]["text to image R@1"] <= 1


def test_the_document_names_the_lines():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert IMPORT in text and "| MeanPairConfig" in text
