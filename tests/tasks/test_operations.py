"""What trained models can do: settings of an evaluation that have no effect on a model are named, and only those."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import diptych
from diptych.cli import main
from diptych.config.tasks import VQA, Captioning, GalleryEvaluation, Matching, Retrieval
from diptych.runs.load_model import load_model
from diptych.tasks.definition import Result, Task
from diptych.tasks.operations import settings_without_effect
from diptych.tasks.retrieval import evaluate
from tests.test_api import saved_run

EVALUATION = Retrieval(data="scenes:8", split="train", gallery=6, captions=1, rerank=6, workers=0, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "unused"),
    [
        ("clip.base", {"rerank": "this CLIP has no trained ITM or ranking head", "rerank_by": "this CLIP has no"}),
        ("vilt.base", {"rerank": "this ViLT was not trained with a contrastive", "rerank_by": "scored by fusion"}),
        ("blip.pretrain_14m", {}),
    ],
)
def test_the_settings_named_are_those_that_change_nothing(recipe: str, unused: dict[str, str], tmp_path: Path):
    loaded = load_model(saved_run(recipe, tmp_path / "run"), torch.device("cpu"))
    named = settings_without_effect(loaded, EVALUATION)
    assert named.keys() == {*unused, "seed"}
    assert all(part in named[name] for name, part in unused.items())
    with torch.no_grad():
        before = evaluate(loaded, EVALUATION)
        for name, value in {"rerank": 1, "rerank_by": "itm", "seed": 5, "captions": 2, "gallery": 5}.items():
            after = evaluate(loaded, replace(EVALUATION, **{name: value}))
            same = (after.metrics, after.predictions) == (before.metrics, before.predictions)
            assert same == (name in named), name
        shuffled = replace(EVALUATION, shuffle_captions=True)
        assert "seed" not in settings_without_effect(loaded, shuffled)
        assert evaluate(loaded, shuffled).predictions != evaluate(loaded, replace(shuffled, seed=5)).predictions
    assert ("rerank" in settings_without_effect(loaded, replace(EVALUATION, rerank=0))) == (recipe == "vilt.base")
    assert settings_without_effect(loaded, Matching()) == {}
    assert (
        settings_without_effect(loaded, VQA()).keys()
        == {"seed"}
        == settings_without_effect(loaded, Captioning()).keys()
    )


def test_the_seed_of_a_task_of_ones_own_is_not_said_to_have_no_effect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Whether an evaluation draws random numbers is known to its task alone."""
    loaded = load_model(saved_run("clip.base", tmp_path / "run"), torch.device("cpu"))
    own = Task(GalleryEvaluation, lambda loaded, config: Result({}), lambda loaded: "")
    monkeypatch.setattr("diptych.tasks.operations.tasks", lambda: {GalleryEvaluation.task: own})
    assert settings_without_effect(loaded, GalleryEvaluation(seed=3)) == {}


@pytest.mark.slow
def test_a_setting_that_is_given_and_has_no_effect_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = str(saved_run("clip.base", tmp_path / "run"))
    words = [
        "evaluate",
        run,
        "--task",
        "retrieval",
        "--split",
        "train",
        "--gallery",
        "4",
        "--workers",
        "0",
        "--device",
        "cpu",
    ]
    assert main(words) == 0
    assert "has no effect" not in capsys.readouterr().out
    assert main([*words, "--rerank", "16"]) == 0
    assert (
        "rerank has no effect: this CLIP has no trained ITM or ranking head (trained with itc)\n"
        in capsys.readouterr().out
    )
    diptych.evaluate(run, replace(EVALUATION, data="", rerank=3))
    printed = capsys.readouterr().out
    assert "rerank has no effect" in printed and "rerank_by" not in printed
