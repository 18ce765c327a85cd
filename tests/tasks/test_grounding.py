"""Grounding: its loss by a plain loop, regions of patches, rows of a tiny run, controls, and what others lack."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import diptych
from diptych.batch import Batch
from diptych.cli import main
from diptych.config import tasks as settings
from diptych.data.regions.arrays import fixed_boxes
from diptych.data.sources.grounding import open_expressions
from diptych.inference.saved_model import RunError
from diptych.metrics.boxes import blind_scores, ious
from diptych.models.albef import recipes as albef
from diptych.models.common_recipes import finetuning
from diptych.models.vilt import recipes as vilt
from diptych.modules.heads import GroundingHead
from diptych.modules.tokens import packing
from diptych.runs import finetune
from diptych.runs.baselines import baselines
from diptych.runs.evaluate import evaluate
from diptych.tasks.grounding import Grounding, coverage
from tests.models.systems.common import images, texts
from tests.models.systems.vilbert import SYSTEMS, regional
from tests.runs.tiny_runs import EXACT, TRAINING

SETTINGS = settings.Grounding(split="train", workers=0, device="cpu", precision="fp32")


def test_the_loss_is_binary_cross_entropy_summed_over_regions():
    torch.manual_seed(0)
    step = Grounding(SYSTEMS["vilbert"].small(), GroundingHead(24)).eval()  # type: ignore[arg-type]
    scores, overlap = torch.randn(3, 5), torch.tensor([[0.0, 0.7, 0, 0, 0.5], [1, 0, 0, 0, 0], [0, 0, 0, 0.5, 0]])
    scores[0, 4] = scores[1, 0] = scores[2, 3] = 9.0
    counts = {"grounding": torch.tensor(3.0), "grounding/accuracy": torch.tensor(3.0)}
    losses = step.losses(scores, overlap, counts)
    total = 0.0
    for score, target in zip(scores.flatten().tolist(), overlap.flatten().tolist(), strict=True):
        p = 1 / (1 + np.exp(-score))
        total -= target * np.log(p) + (1 - target) * np.log(1 - p)
    assert losses["grounding"].item() == pytest.approx(total / 3, rel=1e-5)
    assert losses["grounding/accuracy"].item() == pytest.approx(1 / 3)  # an IoU of 0.5 is not above 0.5


def test_cells_are_weighted_by_how_much_of_the_box_they_cover():
    boxes = torch.tensor([[[0, 0, 1, 1, 1], [0, 0, 0.5, 0.75, 0.4], [0.25, 0.5, 1, 1, 0.4], [0, 0, 0, 0, 0]]])
    inside = torch.zeros(1, 2, 3, dtype=torch.bool)
    inside[:, :, :2] = True  # an image of two columns in a grid of three
    shares = coverage(boxes, inside.flatten(1), (2, 3)).view(4, 2, 3)
    assert torch.allclose(shares[0], torch.tensor([[0.25, 0.25, 0], [0.25, 0.25, 0]]))
    assert torch.allclose(shares[1], torch.tensor([[2 / 3, 0, 0], [1 / 3, 0, 0]]))
    assert torch.allclose(shares[2], torch.tensor([[0, 0, 0], [1 / 3, 2 / 3, 0]]))
    assert not shares[3].any()


@pytest.mark.parametrize("packed", [False, True])
def test_a_region_of_patches_has_the_mean_logit_of_its_patches(packed: bool):
    from tests.models.systems.vilt import SYSTEMS as VILT

    torch.manual_seed(0)
    step = Grounding(VILT["vilt"].small().eval(), GroundingHead(32)).eval()  # type: ignore[arg-type]
    batch = Batch(0, 0, torch.arange(4), image=images(4, 1), text=texts(4, 2))
    with torch.no_grad(), packing(packed):
        scores = step.region_scores(batch)
        tokens = step.pair(batch).image.select(name="patches")
        logits = step.head(tokens.to_padded())
    assert scores.logits.shape == (4, len(fixed_boxes())) and batch.image is not None
    for i, (rows, columns) in enumerate((batch.image.sizes // 8).tolist()):
        of_image = logits[i][tokens.mask[i]].view(rows, columns)
        for logit, (x1, y1, x2, y2, _) in zip(scores.logits[i].tolist(), fixed_boxes().tolist(), strict=True):
            total = weight = 0.0
            for r in range(rows):
                for c in range(columns):
                    tall = max(0.0, min(y2, (r + 1) / rows) - max(y1, r / rows))
                    wide = max(0.0, min(x2, (c + 1) / columns) - max(x1, c / columns))
                    total, weight = total + tall * wide * of_image[r, c].item(), weight + tall * wide
            assert logit == pytest.approx(total / weight, abs=1e-5)


def test_padding_is_never_chosen():
    step = Grounding(SYSTEMS["vilbert"].small().eval(), GroundingHead(24)).eval()  # type: ignore[arg-type]
    torch.nn.init.constant_(step.head.linear.bias, -50.0)
    batch = Batch(0, 0, torch.arange(4), image=images(4, 1), text=texts(4, 2))
    batch = replace(batch, image2=batch.image, matching=None)
    from diptych.batch import Matching

    assert batch.image is not None
    batch = regional(replace(batch, matching=Matching(batch.image, torch.ones(4, dtype=torch.bool))))
    with torch.no_grad():
        scores = step.region_scores(batch)
    assert (~scores.mask).any() and scores.mask.gather(1, scores.logits.argmax(1, keepdim=True)).all()


@pytest.fixture(scope="session")
def grounded(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViLT fine-tuned for grounding, with true boxes among its regions, and evaluated on its training split."""
    out = tmp_path_factory.mktemp("runs") / "grounding"
    training = [*TRAINING, "--steps", "4", "--workers", "0", "--proposals", "joined"]
    assert main(["finetune", "grounding", "--init_from", str(pretrained), *training, "--out", str(out)]) == 0
    assert main(["evaluate", str(out), "--split", "train", "--workers", "0", *EXACT]) == 0
    return out


def written(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return json.loads((folder / "metrics.json").read_text()), rows


@pytest.mark.slow
def test_metrics_are_those_of_the_predictions(grounded: Path):
    record, rows = written(grounded / "evaluate-grounding-scenes_50-train-fp32")
    metrics, source = record["metrics"], open_expressions("scenes:50", "train")
    assert len(rows) == metrics["phrases"] == len(source) == 200
    for row in rows:
        expression = source.expression(row["index"])
        size = np.array(source.size(expression.image) * 2)
        overlap = ious(np.array([row["box"]]), np.array(expression.box, dtype=float))[0]
        assert row["iou"] == pytest.approx(overlap, abs=1e-3) and row["right"] == (row["iou"] > 0.5)
        assert row["phrase"] == expression.phrase and row["truth"] == list(expression.box)
        assert row["probable"][0] == [row["box"], row["probability"]]
        assert row["blind"] == blind_scores(fixed_boxes()[:, :4], ious(fixed_boxes()[:, :4], expression.box / size))
    assert metrics["accuracy"] == pytest.approx(np.mean([row["right"] for row in rows]))
    assert metrics["mean IoU"] == pytest.approx(np.mean([row["iou"] for row in rows]))
    related = [row["right"] for row in rows if row["kinds"] == ["relation"]]
    assert metrics["accuracy, relation"] == pytest.approx(np.mean(related)) and related
    blind = baselines(replace(SETTINGS, data="scenes:50"))["36 fixed boxes"]
    assert {name: metrics[name] for name in blind} == pytest.approx(blind)
    low, high = record["intervals"]["best region"]
    assert low < metrics["best region"] < high


@pytest.mark.slow
def test_the_report_shows_boxes(grounded: Path):
    page = (grounded / "report.html").read_text()
    assert page.count('<article class="answer') == 12 and "Phrases and boxes" in page


@pytest.mark.slow
def test_true_boxes_are_regions_of_an_evaluation_only_if_asked_for(grounded: Path):
    metrics = evaluate(grounded, replace(SETTINGS, proposals="true"))
    assert metrics["best region"] == 1
    assert metrics["random region"] == pytest.approx(
        baselines(replace(SETTINGS, data="scenes:50"))["true boxes"]["random region"]
    )
    assert (grounded / "evaluate-grounding-scenes_50-train-proposals_true-fp32").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("ablate", ["image", "text"])
def test_an_ablated_part_has_no_influence(grounded: Path, ablate: Any, tmp_path: Path):
    shutil.copytree(grounded, run := tmp_path / "run")
    evaluate(run, replace(SETTINGS, ablate=ablate))
    _, rows = written(run / f"evaluate-grounding-scenes_50-train-ablate_{ablate}-fp32")
    source = open_expressions("scenes:50", "train")
    boxes: dict[Any, set[str]] = {}
    for row in rows:
        size = source.size(row["picture"])
        key = (row["picture"],) if ablate == "text" else (row["phrase"], size)
        boxes.setdefault(key, set()).add(str(row["box"]))
    assert len(boxes) < len(rows) and all(len(chosen) == 1 for chosen in boxes.values())


@pytest.mark.slow
def test_scores_do_not_depend_on_the_batch_size(grounded: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    _, before = written(grounded / "evaluate-grounding-scenes_50-train-fp32")
    shutil.copytree(grounded, run := tmp_path / "run", ignore=shutil.ignore_patterns("evaluate-*"))
    monkeypatch.setattr("diptych.tasks.grounding.BATCH", 7)
    evaluate(run, SETTINGS)
    _, after = written(run / "evaluate-grounding-scenes_50-train-fp32")
    for one, other in zip(before, after, strict=True):
        assert one["box"] == other["box"] and one["probability"] == pytest.approx(other["probability"], abs=1e-5)


@pytest.mark.slow
def test_ground_and_predict_give_boxes_in_pixels(grounded: Path, tmp_path: Path):
    source = open_expressions("scenes:50", "train")
    model, phrase = diptych.load(grounded, device="cpu"), source.expression(0).phrase
    regions = model.ground(source.image(0), phrase)
    _, rows = written(grounded / "evaluate-grounding-scenes_50-train-fp32")
    assert len(regions) == len(fixed_boxes()) and list(regions[0].box) == rows[0]["box"]
    assert regions[0].score == pytest.approx(rows[0]["probability"], abs=1e-5)
    assert [r.score for r in regions] == sorted((r.score for r in regions), reverse=True)
    assert model.predict(source.image(0), phrase)[0]["box"] == rows[0]["box"]
    large = source.image(0).resize((1600, 1200))
    large.save(tmp_path / "large.png")
    assert model.predict(tmp_path / "large.png", "?")[0]["box"] == list(model.ground(large, "?")[0].box)
    assert max(x for region in model.ground(large, "?") for x in region.box) == 1600
    out = tmp_path / "rows.jsonl"
    assert main(["predict", str(grounded), str(tmp_path / "large.png"), "the red fish", "--out", str(out)]) == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["phrase"] == "the red fish" and {"box", "probability", "probable"} <= row.keys()


@pytest.mark.slow
def test_a_bad_image_is_skipped_counted_and_listed(grounded: Path, tmp_path: Path):
    for name in "ab":
        Pillow.new("RGB", (60, 40)).save(tmp_path / f"{name}.png")
    rows = [{"image": f"{name}.png", "split": "val", "phrase": "x", "box": [0, 0, 30, 30]} for name in "abab"]
    rows[3]["box"] = [0, 0, 90, 30]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.png").write_bytes(b"broken")
    shutil.copytree(grounded, run := tmp_path / "run")
    config = replace(SETTINGS, data=str(tmp_path / "rows.jsonl"), split="val", max_skipped=1.0)
    metrics = evaluate(run, config)
    assert (metrics["phrases"], metrics["skipped"]) == (1, 3)


def test_models_whose_image_tokens_do_not_depend_on_the_text_are_refused():
    run = finetuning("grounding", albef.small())
    with pytest.raises(RunError, match="grounding needs a model whose image tokens attend to the text"):
        finetune.build(replace(run, images=replace(run.images, shorter_side=32)))
    cropped = finetuning("grounding", vilt.tiny())
    with pytest.raises(RunError, match="grounding needs whole images"):
        finetune.build(replace(cropped, images=replace(cropped.images, shorter_side=64, crop=32, square=True)))


def test_a_baseline_is_evaluated_as_it_was_trained():
    options = settings.GroundingOptions(ablate="text", true_regions="true/")
    completed = SETTINGS.of_run(options)
    assert isinstance(completed, settings.Grounding) and completed.condition == "text ablated (baseline)"
    assert (completed.proposals, completed.true_regions) == ("model", "true/")
