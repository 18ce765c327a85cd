"""The task of docs/adding-a-task.md: one file, one dataclass and one name are a task, in a copy of the package."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from tests.copied_package import ROOT, copy_package, run_copy

OWN = ROOT / "tests" / "own_task"
DOCUMENT = ROOT / "docs" / "adding-a-task.md"
TABLE = "(Retrieval, Captioning, VQA, Grounding, Matching, Classification)"
SMALL = "--model.dim 32 --model.depth 1 --model.num_heads 2 --model.mlp_dim 64 --images.shorter_side 64"
MODEL = "--model.patch_size 16 --images.patch_size 16 --model.grid 4 4"
RUN = "--batch_size 8 --workers 0 --device cpu --precision fp32"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package with the task's file, its dataclass and its name in the table of config/tasks.py."""
    copy_package(tmp_path)
    shutil.copy(OWN / "orientation.py", tmp_path / "diptych" / "tasks")
    config = tmp_path / "diptych" / "config" / "tasks.py"
    text = config.read_text()
    assert text.count(TABLE) == text.count("EVALUATIONS: dict") == 1
    text = text.replace("EVALUATIONS: dict", f"{(OWN / 'settings.py').read_text()}EVALUATIONS: dict")
    config.write_text(text.replace(TABLE, TABLE.replace(")", ", Orientation)")))
    return tmp_path


@pytest.mark.slow
def test_the_task_of_the_document_is_trained_for_evaluated_and_predicted(package: Path):
    diptych = partial(run_copy, package)
    assert "orientation" in diptych("finetune --help")
    diptych(f"finetune orientation --recipe vit.base {SMALL} {MODEL} --data scenes:40 {RUN} --steps 3 --out run")
    assert json.loads((package / "run" / "config.json").read_text())["labels"][1] == "90 degrees"
    diptych("evaluate run --workers 0 --device cpu --precision fp32")
    (metrics,) = package.glob("run/evaluate-orientation-*/metrics.json")
    values = json.loads(metrics.read_text())["metrics"]
    assert values["images"] % 4 == 0 and values["chance"] == 0.25 and 0 <= values["accuracy"] <= 1
    photo = package / "photo.png"
    Image.new("RGB", (96, 64), "blue").save(photo)
    (row,) = map(json.loads, diptych(f"predict run {photo} --device cpu").splitlines())
    assert row["class"].endswith("degrees") and abs(sum(p for _, p in row["probable"]) - 1) < 1e-4


def test_the_document_shows_the_task_whole():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert (OWN / "orientation.py").read_text() in text and (OWN / "settings.py").read_text().strip() in text
    assert TABLE.replace(")", ", Orientation)") in text
    assert (OWN / "orientation.py").read_text().count("\n") + 8 < 120
