"""The examples run, at toy size."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

from diptych.runs.recipes import recipe
from tests.models.test_first_step import toy
from tests.test_api import TRAINING, answering_run, sample_pictures, saved_run

EXAMPLES = Path(__file__).parents[1] / "examples"
CLIP = TRAINING | {
    "model.text_dim": 16, "model.text_depth": 1, "model.text_num_heads": 2, "model.text_mlp_dim": 32, "model.vocab_size": 114,
    "model.embed_dim": 8, "model.patch_size": 16, "model.grid": (2, 2), "images.shorter_side": 32, "images.crop": 32,
}  # fmt: skip
"""Settings of a tiny run of clip.base."""
ON_TABLE = {"visualbert.small", "vilbert.small", "albef.small"}


def example(name: str) -> Any:
    """The `main` of an example."""
    return run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_examples_are_short():
    files = sorted(EXAMPLES.glob("*.py"))
    assert len(files) == 3 and all(len(file.read_text(encoding="utf-8").splitlines()) < 40 for file in files)


def test_the_quickstart_shows_what_a_model_can_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "photos").mkdir()
    for i, picture in enumerate(sample_pictures()[:2]):
        picture.save(tmp_path / "photos" / f"{i}.png")
    example("quickstart")(str(saved_run("blip.pretrain_14m", tmp_path / "blip")), str(tmp_path / "photos"))
    shown = capsys.readouterr().out
    assert "VLM(BLIP on" in shown and shown.count("tensor(") == 2
    vqa = answering_run(tmp_path / "vqa", toy(recipe("vilt.base")).model, ["yes", "no"])
    example("quickstart")(str(vqa), str(tmp_path / "photos"))
    assert capsys.readouterr().out.count("Prediction(text=") == 2


@pytest.mark.slow
def test_photographs_are_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main = example("train_on_your_photos")
    main("scenes:20", str(tmp_path / "run"), "clip.base", 2, **CLIP)
    shown = capsys.readouterr().out
    assert (
        "VLM(CLIP on cpu; can: embed_images, embed_texts, itc, zero_shot, ground)" in shown
        and "\nshuffled captions 0" in shown
    )
    pairs = [(picture, "a thing") for picture in sample_pictures()]
    main(pairs, str(tmp_path / "pairs"), "clip.base", 2, **CLIP)
    assert "VLM(CLIP" in capsys.readouterr().out


@pytest.mark.slow
def test_fusions_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fusions = {"vilt.tiny": "one transformer over words and patches", "vilt.small": "the same, on larger images"}
    example("compare_fusions")("scenes:20", str(tmp_path), fusions, 2, 4, **TRAINING)
    shown = capsys.readouterr().out
    assert shown.count("parameters  R@1 ") == 2 and "(chance " in shown


def test_the_fusions_compared_are_recipes():
    assert run_path(str(EXAMPLES / "compare_fusions.py"))["FUSIONS"].keys() == ON_TABLE
    assert all(recipe(name).objectives.itm for name in ON_TABLE)
