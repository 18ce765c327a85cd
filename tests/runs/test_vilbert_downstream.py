"""ViLBERT's published files from import to scores, by command: evaluated as they are, then with regrouped heads.

The files have the names of vilbert_beta and MACA, small shapes and random weights; a toy detector's regions are files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diptych.checkpoints.read import load_state_dict
from diptych.cli import main
from diptych.data.regions.arrays import fixed_boxes
from diptych.data.sources.grounding import open_expressions
from diptych.inference.saved_model import read_config
from diptych.models.vilbert.config import ViLBERTConfig
from tests.parity.goldens import GOLDEN_CASES
from tests.runs.test_published_forms import downstream
from tests.runs.tiny_runs import EXACT

CONFIG = GOLDEN_CASES / "vilbert_pretrain" / "config.json"
FEATURES = 40  # per region, as the files' weights have
ANSWERS = ["yes", "no", "red", "blue", "two", "circle", "square"]
DATA = ["--data", "scenes:16", "--workers", "0", *EXACT]
VAL_IMAGES = 1000  # of scenes:16
REGROUPED = {"coattention_num_heads": 2, "image_num_heads": 8, "num_heads": 16}  # from 4 each


def with_bert_vocabulary(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file with word embeddings for BERT's vocabulary."""
    words = torch.randn(30522, 32, generator=torch.Generator().manual_seed(7)) * 0.02
    shapes = {"embeddings.word_embeddings.weight": words, "cls.predictions.decoder.weight": words}
    shapes |= {"cls.predictions.bias": torch.zeros(len(words))}
    return {
        name: next((new for end, new in shapes.items() if name.endswith(end)), tensor) for name, tensor in state.items()
    }


def write_regions(folder: Path, boxes: Sequence[Any]) -> Path:
    """A toy detector's files: boxes as shares of each image's sides, and random features, one .npz for each image."""
    folder.mkdir()
    for image, corners in enumerate(boxes):
        features = np.random.default_rng(image).standard_normal((len(corners), FEATURES), dtype=np.float32)
        np.savez(folder / f"{image}.npz", features=features, norm_bb=np.asarray(corners, dtype=np.float32))
    return folder


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fixed boxes with features for the images of both splits, which are numbered alike."""
    return write_regions(tmp_path_factory.mktemp("detector") / "regions", [fixed_boxes()[:, :4]] * VAL_IMAGES)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command with a small validation, and returns what it printed."""
    monkeypatch.setattr("diptych.runs.train.VALIDATION_EXAMPLES", 8)

    def run(*words: Any) -> str:
        assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    return run


def import_words(state: dict[str, Tensor], folder: Path, regions: Path, task: str = "") -> list[Any]:
    """The command that imports a file with these weights into ``folder/imported``."""
    torch.save(with_bert_vocabulary(state), folder / "pytorch_model_19.bin")
    (folder / "answers.json").write_text(json.dumps(ANSWERS))
    words = ["import", "vilbert", folder / "pytorch_model_19.bin", "--config", CONFIG, "--regions", regions]
    words += ["--task", task] if task else []
    words += ["--answers", folder / "answers.json"] if task == "vqa" else []
    return [*words, "--out", folder / "imported"]


def evaluated(run: Path, task: str) -> dict[str, float]:
    """The metrics of the only evaluation of a run, on the task."""
    (file,) = run.glob(f"evaluate-{task}-*/metrics.json")
    return json.loads(file.read_text())["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "counts"),
    [("vqa", {"questions": 80}), ("grounding", {"phrases": 64}), ("retrieval", {"images": 16, "texts": 80})],
)
def test_a_downstream_file_is_evaluated_regrouped_fine_tuned_and_evaluated(
    task: str, counts: dict[str, int], tmp_path: Path, regions: Path, command: Callable[..., str]
):
    imported, tuned = tmp_path / "imported", tmp_path / "tuned"
    command(*import_words(downstream(), tmp_path, regions, task))
    command("evaluate", imported, *DATA, "--split", "train")
    assert evaluated(imported, task).items() >= (counts | {"skipped": 0}).items()
    heads = [word for name, count in REGROUPED.items() for word in (f"--model.{name}", count)]
    training = ["--steps", "2", "--batch_size", "8", "--freeze", "words", "streams.text.{0..1}"]
    printed = command("finetune", task, "--from", imported, *DATA, *training, *heads, "--out", tuned)
    for name, count in REGROUPED.items():
        assert f"heads regrouped: {name} 4 -> {count}" in printed
    before, after = read_config(imported).model, read_config(tuned).model
    assert isinstance(before, ViLBERTConfig) and after == replace(before, **REGROUPED)
    command("evaluate", tuned, *DATA, "--split", "train")
    assert evaluated(tuned, task).items() >= (counts | {"skipped": 0}).items()


@pytest.mark.slow
def test_freezing_the_text_stream_up_to_a_layer_leaves_exactly_these_weights(
    tmp_path: Path, regions: Path, command: Callable[..., str]
):
    imported, tuned = tmp_path / "imported", tmp_path / "tuned"
    command(*import_words(downstream(), tmp_path, regions, "vqa"))
    training = ["--steps", "2", "--batch_size", "8", "--freeze", "words", "streams.text.{0..2}"]
    command("finetune", "vqa", "--from", imported, *DATA, *training, "--out", tuned)
    before, after = (load_file(run / "model.safetensors") for run in (imported, tuned))
    model = {name for name in before if name.startswith("model.")}
    unchanged = {name for name in model if torch.equal(before[name], after[name])}
    frozen = ("model.words.", *(f"model.streams.text.{layer}." for layer in range(3)))
    assert unchanged == {name for name in model if name.startswith(frozen)}
    assert any(name.startswith("model.streams.text.3.") for name in model - unchanged)


@pytest.mark.slow
def test_a_pretraining_file_retrieves_zero_shot_by_itm_and_starts_refcoco(
    tmp_path: Path, regions: Path, command: Callable[..., str]
):
    state = load_state_dict(GOLDEN_CASES / "vilbert_pretrain" / "checkpoint.pth")
    imported, tuned = tmp_path / "imported", tmp_path / "tuned"
    command(*import_words(state, tmp_path, regions))
    printed = command("evaluate", imported, "--task", "retrieval", *DATA, "--split", "train", "--gallery", "8")
    assert "of 8 images and 40 texts by fusion" in printed
    assert evaluated(imported, "retrieval")["images"] == 8
    source = open_expressions("scenes:16", "train")
    shares = [np.array(source.objects(image)) / ([*source.size(image)] * 2) for image in range(16)]
    true = write_regions(tmp_path / "true", shares)
    training = ["--true_regions", true, "--epochs", "0", "--steps", "3", "--model.coattention_num_heads", "8"]
    printed = command("finetune", "vilbert.refcoco", "--from", imported, *DATA, *training, "--out", tuned)
    assert "heads regrouped: coattention_num_heads 4 -> 8" in printed
    assert "the saved weights are those of step" in printed
    command("evaluate", tuned, *DATA, "--split", "train")
    assert evaluated(tuned, "grounding").items() >= {"phrases": 64, "skipped": 0}.items()
