"""Grounding is evaluated by Grad-CAM where a model has no grounding head: scores, the pointing game, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.attribution.grounding import PhraseMap, ground_by_map
from diptych.batch import Batch
from diptych.config.tasks import Grounding
from diptych.inference.loaded_model import LoadedModel
from diptych.protocols import UnsupportedOperation
from diptych.runs.evaluate import evaluate as evaluate_run
from diptych.runs.load_model import load_model
from diptych.tasks import grounding
from diptych.tasks.definition import Result
from diptych.tasks.grounding import evaluate, expressions
from diptych.tasks.operations import why_unsupported
from tests.predict.tiny_models import untrained

EVALUATION = Grounding(data="scenes:3", split="train", workers=0, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("runs") / "blip")


@pytest.fixture(scope="module")
def blip(run: Path) -> LoadedModel:
    return load_model(run, torch.device("cpu"))


@pytest.fixture(scope="module")
def result(blip: LoadedModel) -> Result:
    with blip.computing(False):
        return evaluate(blip, EVALUATION)


def test_each_phrase_has_the_box_that_diptych_ground_gives(blip: LoadedModel, result: Result):
    source = expressions(EVALUATION.data, "train", EVALUATION.layout, "", 32)
    assert [row["index"] for row in result.predictions] == list(range(len(source)))
    for row in result.predictions[::5]:
        _, boxes = ground_by_map(blip, source.image(row["picture"]), row["phrase"])
        assert row["box"] == pytest.approx(boxes[0][0], abs=0.011)
        assert row["score"] == pytest.approx(boxes[0][1], rel=1e-4)
        assert "probability" not in row


def test_the_metrics_are_the_means_of_the_rows_with_intervals(result: Result):
    rows = result.predictions
    for name in ("pointing", "pointing/center", "pointing/chance"):
        assert result.metrics[name] == pytest.approx(sum(row["pointing"][name] for row in rows) / len(rows))
    assert result.metrics["accuracy"] == pytest.approx(sum(row["right"] for row in rows) / len(rows))
    assert 0 < result.metrics["pointing/chance"] < 0.5
    assert result.resampled is not None
    assert {"accuracy", "pointing"} <= result.resampled.metrics(np.ones((1, 3), np.int64)).keys()
    assert all(example.probability is None for example in result.make_examples())  # type: ignore[union-attr]


@pytest.mark.parametrize("pointed", [True, False])
def test_a_map_of_the_true_object_is_right(pointed: bool, blip: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    """Maps of the true boxes win every point of the pointing game and of accuracy; maps of all else win none."""
    source = expressions(EVALUATION.data, "train", EVALUATION.layout, "", 32)

    def true_maps(loaded: LoadedModel, batch: Batch, explain: object) -> list[PhraseMap]:
        maps = []
        for index in batch.ids.tolist():
            expression = source.expression(index)
            width, height = source.size(expression.image)
            values = torch.zeros(height, width)
            x1, y1, x2, y2 = (round(side) for side in expression.box)
            values[y1:y2, x1:x2] = 1
            maps.append(PhraseMap(values if pointed else 1 - values, None, blip.image_settings))
        return maps

    monkeypatch.setattr(grounding, "phrase_maps", true_maps)
    with blip.computing(False):
        metrics = evaluate(blip, replace(EVALUATION, proposals="true")).metrics
    assert (metrics["pointing"], metrics["accuracy"]) == ((1, 1) if pointed else (0, metrics["accuracy"]))
    assert pointed or metrics["accuracy"] < 0.5
    assert metrics["best region"] == 1


@pytest.mark.slow
def test_the_command_writes_a_report_and_names_its_folder_by_the_method(run: Path, blip: LoadedModel):
    metrics = evaluate_run(run, replace(EVALUATION, method="itc", layer=0))
    folder = run / "evaluate-grounding-scenes_3-train-method_itc-layer_0-fp32"
    assert (folder / "examples.json").is_file() and metrics["phrases"] > 0
    assert "the region with the highest score" in (run / "report.html").read_text()


@pytest.mark.slow
def test_what_a_model_lacks_is_said(blip: LoadedModel, tmp_path: Path):
    vit = load_model(untrained(tmp_path / "vit", "vit.base"), torch.device("cpu"))
    assert "has no trained grounding head, nor an ITM, ranking or contrastive head" in why_unsupported(vit, "ground")
    assert why_unsupported(blip, "ground") == ""
    clip = load_model(untrained(tmp_path / "clip", "clip.base"), torch.device("cpu"))
    with pytest.raises(UnsupportedOperation, match="this CLIP has no trained ITM or ranking head"):
        evaluate(clip, replace(EVALUATION, method="itm"))
