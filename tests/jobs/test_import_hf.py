"""A folder as transformers saves it, imported at the command line, computes what transformers computes; whatever the config."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_random import CLASSES, close, config_of, equal, imported, saved
from PIL import Image as Pillow

from diptych.cli import main
from diptych.data.transforms import prepare, stack
from diptych.recipes.run import ImportedCheckpoint

pytest.importorskip("transformers")


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that an import ends with."""
    capsys.readouterr()
    assert main(["import", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def changed(file: Path, **values: Any) -> None:
    """Some keys of a JSON file set; "part.key" within a nested part, ... removes one."""
    held = json.loads(file.read_text())
    for name, value in values.items():
        part, _, key = name.rpartition("__")
        where = held[part] if part else held
        if value is ...:
            del where[key]
        else:
            where[key] = value
    file.write_text(json.dumps(held))


def checked(kind: str, seed: int, folder: Path) -> None:
    """One random model: imported, exported, loaded by transformers and imported again, equal each time."""
    import transformers

    draw = random.Random(f"{kind} {seed}")
    config = config_of(kind, draw)
    theirs = saved(kind, config, folder / "theirs", seed)
    torch.manual_seed(seed)
    run, step, facts = imported(CLASSES[kind], folder / "theirs", folder / "run")
    assert equal(kind, theirs, step), config
    labels = list(theirs.config.id2label.values())
    assert facts.get("classes", facts.get("answers", labels)) in (labels, [])
    assert kind not in ("ViTForImageClassification", "ViltForQuestionAnswering") or {"classes", "answers"} & set(facts)
    assert main(["export", str(folder / "run"), "--to", "hf", "--out", str(folder / "hf")]) == 0
    again, told = getattr(transformers, kind).from_pretrained(folder / "hf", output_loading_info=True)
    unread = set(told["missing_keys"]) - {"pooler.dense.weight", "pooler.dense.bias"}
    assert not unread and not told["unexpected_keys"]
    assert equal(kind, again.eval(), step)
    assert kind != "ViTForImageClassification" or again.config.id2label == theirs.config.id2label
    run2, step2, facts2 = imported(CLASSES[kind], folder / "hf", folder / "back")
    assert equal(kind, theirs, step2) and facts2.get("classes") == facts.get("classes")
    assert facts2.get("answers") == facts.get("answers")
    assert run2.arguments == run.arguments if isinstance(run, ImportedCheckpoint) else run2.model == run.model


@pytest.mark.parametrize("kind", CLASSES)
def test_one_model_of_each_class_is_equal(kind: str, tmp_path: Path):
    checked(kind, 0, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSES)
def test_random_models_of_each_class_are_equal(kind: str, tmp_path: Path):
    for seed in range(1, 7):
        checked(kind, seed, tmp_path / str(seed))
