"""A failed report never ends the run or evaluation: a failed section is one printed line, and --debug raises it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from torch import nn

from diptych.cli import main
from diptych.config.data import Embedders
from diptych.config.objectives import LM, Objectives
from diptych.config.run import Finetune, Pretrain
from diptych.metrics.vqa import BEST_OF_ANY, BEST_OF_LIST
from diptych.models import common_recipes
from diptych.models.blip import recipes as blip
from diptych.models.configs import BLIPConfig, SCANConfig, ViLTConfig
from diptych.models.scan import recipes as scan
from diptych.models.vilt import recipes as vilt
from diptych.runs import report
from diptych.runs.build import build
from diptych.runs.heat_maps import heat_maps
from tests.runs.tiny_runs import MODEL, TRAINING, untrained, write_model

TINY: Any = dict(vocab_size=114, text_length=24, patch_size=16, grid=(2, 2))
SIDE: Any = dict(image_dim=16, image_depth=1, image_num_heads=1, image_mlp_dim=16)
GALLERY = ["--gallery", "4", "--captions", "1"]
OPTIONS = {
    "matching": GALLERY,
    "retrieval": GALLERY,
    "captioning": [*GALLERY, *["--max_length", "6", "--num_beams", "1"]],
}


def settings(task: str) -> list[str]:
    """The arguments of a small evaluation."""
    return [*["--split", "train", "--workers", "0", "--device", "cpu"], *OPTIONS.get(task, [])]


def on_scenes(run: Pretrain, model: Any) -> Pretrain:
    images = replace(run.images, shorter_side=32, patch_size=16, augment=False)
    return replace(
        run, model=model, images=images, data="scenes:8", training=replace(run.training, precision="fp32", device="cpu")
    )


def captioner() -> Pretrain:
    """A BLIP without text encoder, like the official captioner."""
    tokens: Any = dict(bos_token_id=114, enc_token_id=115)
    size: Any = dict(dim=16, depth=1, num_heads=1, mlp_dim=16, embed_dim=8)
    model = BLIPConfig(**{**TINY, "vocab_size": 116}, **SIDE, **size, **tokens, variant="caption")
    return replace(on_scenes(blip.pretrain_14m(), model), objectives=Objectives(lm=LM()), heads=())


def matcher() -> Pretrain:
    return on_scenes(vilt.tiny(), ViLTConfig(16, 1, 1, 16, **TINY))


def written(folder: Path, run: Pretrain | Finetune, labels: Sequence[str] = ()) -> Path:
    """The folder of a run with initial weights."""
    return write_model(folder, run, untrained(run, labels), labels)


def evaluated(folder: Path, task: str, *more: str) -> tuple[int, dict[str, float]]:
    status = main(["evaluate", str(folder), "--task", task, *settings(task), *more])
    (path,) = folder.glob(f"evaluate-{task}-*/metrics.json")
    return status, json.loads(path.read_text())["metrics"]


def test_a_captioner_without_a_text_encoder_is_evaluated_with_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = written(tmp_path / "run", captioner())
    status, metrics = evaluated(folder, "captioning")
    assert status == 0 and metrics["images"] == 4
    page = (folder / "report.html").read_text()
    assert page.count('<article class="answer') == 4 and 'article class="heat' not in page
    output = capsys.readouterr()
    assert "could not be made" not in output.err and output.out.splitlines()[-1] == f"{folder}/report.html"


def model_of(run: Pretrain) -> nn.Module:
    return build(run).get_submodule("model")


def test_only_models_that_fuse_words_and_patches_have_heat_maps():
    assert heat_maps(captioner(), model_of(captioner())) == []
    assert len(heat_maps(matcher(), model_of(matcher()))) == 6
    model = captioner().model
    assert isinstance(model, BLIPConfig)
    wide = replace(captioner(), model=replace(model, variant="pretraining", image_dim=32))
    assert heat_maps(wide, model_of(wide)) == [], "text dim 16 != image dim 32"
    two_images = replace(captioner(), model=replace(model, variant="nlvr2"), objectives=Objectives())
    assert heat_maps(two_images, model_of(two_images)) == []


@pytest.mark.quick("heat_maps", "write_report")
@pytest.mark.parametrize(
    "part", ["heat_maps", "facts_section", "example_sections", "training_sections", "evaluation_tables", "write_report"]
)
@pytest.mark.slow
def test_a_section_that_fails_is_one_line_and_the_rest_is_written(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fails(*_: object) -> None:
        raise KeyError("no\x1b[31m\nsuch thing")

    folder = written(tmp_path / "run", matcher())
    monkeypatch.setattr(report, part, fails)
    status, metrics = evaluated(folder, "matching")
    output = capsys.readouterr()
    assert status == 0 and metrics["images"] == 4
    (line,) = [line for line in output.err.splitlines() if line.startswith("diptych:")]
    assert "could not be made (KeyError: " in line and "--debug" in line and "\x1b" not in output.err
    assert (folder / "report.html").is_file() == (part != "write_report")
    assert f"{metrics['itm']:.4g}" in output.out
    with pytest.raises(KeyError):
        main(["evaluate", str(folder), "--task", "matching", *settings("matching"), "--debug"])
    assert not report.debugging.get()
    assert main(["evaluate", str(folder), "--task", "matching", *settings("matching")]) == 0


def test_a_full_disk_while_reporting_loses_no_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = written(tmp_path / "run", matcher())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(folder / "report.html"))

    monkeypatch.setattr("diptych.runs.report.write_report", full)
    assert evaluated(folder, "matching")[0] == 0
    output = capsys.readouterr()
    assert "report.html could not be made (OSError: [Errno 28] No space left on device" in output.err
    assert "report.html" not in output.out


@pytest.mark.quick("metrics.json")
@pytest.mark.parametrize("broken", ["examples.json", "metrics.json"])
@pytest.mark.slow
def test_damaged_files_of_an_earlier_evaluation_are_left_out(
    broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = written(tmp_path / "run", matcher())
    (folder / "evaluate-before").mkdir()
    (folder / "evaluate-before" / broken).write_text("[{}")
    assert evaluated(folder, "retrieval")[0] == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diptych:")]
    assert "evaluate-before could not be made" in line
    page = (folder / "report.html").read_text()
    assert "evaluate-retrieval-" in page and page.count('<article class="retrieval"') == 4


@pytest.mark.slow
def test_undecodable_images_lose_no_metric_of_a_model_of_region_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (data := tmp_path / "data").mkdir()
    (regions := tmp_path / "regions").mkdir()
    rows, draw = [], np.random.default_rng(0)
    for i in range(4):
        Pillow.new("RGB", (20, 20), (60 * i,) * 3).save(data / f"{i}.png")
        rows.append(json.dumps({"image": f"{i}.png", "caption": f"a red circle {i}"}))
        np.savez(regions / f"{i}.npz", norm_bb=np.array([[0, 0, 1, 1, 1, 1]] * 2), features=draw.normal(size=(2, 8)))
    (data / "1.png").write_bytes(b"not an image")
    (data / "train.jsonl").write_text("\n".join(rows))
    run = replace(
        scan.flickr30k(),
        model=SCANConfig(8, 16, 114, 8),
        embedders=Embedders(str(regions), feature_dim=8),
        data=str(data),
    )
    folder = written(tmp_path / "run", replace(run, training=replace(run.training, precision="fp32", device="cpu")))
    status, metrics = evaluated(folder, "retrieval")
    assert status == 0 and metrics["images"] == 4
    assert "diptych:" not in capsys.readouterr().err
    for i in (0, 2, 3):  # and with no decodable image left
        (data / f"{i}.png").write_bytes(f"not an image either, {i}".encode())
    assert evaluated(folder, "retrieval") == (0, metrics)
    assert '<article class="retrieval"' not in (folder / "report.html").read_text()


def test_vqa_reports_the_best_possible_accuracy_beside_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (data := tmp_path / "data").mkdir()
    Pillow.new("RGB", (32, 32)).save(data / "a.png")
    answers_of = [["A"], ["B"], ["Two"] * 10, ["no"] * 10, ["red", "red"]]  # of the run's answers: 1, 1, 0, 1, 0
    rows = [
        json.dumps({"image": "a.png", "question": f"question {i}?", "answer": answers})
        for i, answers in enumerate(answers_of)
    ]
    (data / "train.jsonl").write_text("\n".join(rows))
    run = replace(common_recipes.finetuning("vqa", matcher()), data=str(data))
    folder = written(tmp_path / "run", run, ["a", "b", "2", "no"])
    status, metrics = evaluated(folder, "vqa")
    assert status == 0 and metrics[BEST_OF_ANY] == pytest.approx((1 + 1 + 1 + 1 + 1 / 3) / 5)
    assert metrics[BEST_OF_LIST] == pytest.approx(3 / 5) and 0 <= metrics["accuracy"] <= 3 / 5
    out = capsys.readouterr().out
    page = (folder / "report.html").read_text()
    for line in ("upper bound on accuracy, any answer", "upper bound on accuracy, the run's answers"):
        assert any(row.startswith(line) for row in out.splitlines()) and line.replace("'", "&#39;") in page
    rows = [json.loads(row) for row in next(folder.glob("evaluate-vqa-*/predictions.jsonl")).read_text().splitlines()]
    assert {row["answer"] for row in rows} <= {"a", "b", "2", "no"}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pretrain", "retrieval"])
def test_a_finished_run_whose_report_fails_has_succeeded(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fails(*_: object) -> None:
        raise RuntimeError("nothing can be drawn")

    monkeypatch.setattr("diptych.runs.report.write_report", fails)
    words = ["pretrain", "vilt.tiny"] if task == "pretrain" else ["finetune", task, "--recipe", "vilt.tiny"]
    words += [*MODEL, *TRAINING, "--steps", "2", "--workers", "0", "--out", str(out := tmp_path / "run")]
    assert main(words) == 0
    output = capsys.readouterr()
    assert "report.html could not be made (RuntimeError: nothing can be drawn)" in output.err
    assert (
        output.out.splitlines()[-1] == f"weights: {out / 'model.safetensors'}" and (out / "model.safetensors").is_file()
    )
    with pytest.raises(RuntimeError, match="nothing can be drawn"):
        main([*words, "--debug"])  # it is finished, and only its report is written again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("captions", "status", "error"),
    [
        ([["a red circle"]], 2, "at least two images with different captions"),
        ([["a red circle"]] * 6, 2, "at least two images with different captions"),
        ([["a red circle", "a blue square"], ["a  Red circle"]] * 2, 2, "no negative text"),
        ([["a red circle"], ["a blue square"]] * 3, 0, ""),
        ([["a red circle"], *[["a blue square"]] * 20], 0, ""),
    ],
)
def test_retrieval_needs_negative_texts_to_be_fine_tuned(
    captions: list[list[str]], status: int, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (data := tmp_path / "data").mkdir()
    for i in range(len(captions)):
        Pillow.new("RGB", (32, 32), (10 * i,) * 3).save(data / f"{i}.png")
    rows = [{"image": f"{i}.png", "caption": text} for i, texts in enumerate(captions) for text in texts]
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (data / "val.jsonl").write_text(json.dumps(rows[0]))  # one image: no negative texts, and so no validation
    words = [
        "finetune",
        "retrieval",
        "--recipe",
        "vilt.tiny",
        *MODEL,
        *TRAINING,
        "--data",
        str(data),
        "--batch_size",
        "4",
    ]
    words += ["--steps", "2", "--negative_texts", "3", "--workers", "0", "--out", str(tmp_path / "run")]
    assert main(words) == status
    output = capsys.readouterr()
    if status:
        assert len(output.err.splitlines()) == 1 and error in output.err
    else:
        assert "no validation during training: data (val): no negative text" in output.out
        (row, *_) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
        assert row["retrieval"] == pytest.approx(np.log(4), abs=0.1)


@pytest.mark.slow
def test_a_report_that_cannot_be_written_loses_no_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = written(tmp_path / "run", matcher())
    (folder / "report.html").mkdir()
    assert evaluated(folder, "matching")[0] == 0
    assert "report.html could not be made (" in capsys.readouterr().err


def test_skipped_samples_are_counted_and_each_reason_is_listed_once(tmp_path: Path):
    rows = [{"id": i, "where": "row 3 (a.jpg)", "why": "truncated"} for i in range(5)]
    rows.append({"id": 9, "where": "row 4 (b.jpg)", "why": "too large"})
    (tmp_path / "skipped.json").write_text(json.dumps(rows))
    assert report.skipped(tmp_path) == (
        "6 samples were skipped (skipped.json lists them): row 3 (a.jpg): truncated; row 4 (b.jpg): too large"
    )
    (tmp_path / "skipped.json").write_text(json.dumps(rows[:1]))
    assert report.skipped(tmp_path).startswith("1 sample was skipped (")


def test_a_saved_model_that_was_not_trained_there_has_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = written(tmp_path / "run", matcher())
    (folder / "run.json").unlink()  # as `VLM.save` writes it
    status, _ = evaluated(folder, "retrieval", "--data", "scenes:8")
    printed = capsys.readouterr()
    assert status == 0 and "could not be made" not in printed.err
    assert "<title>vilt.tiny, a saved model (pretraining)</title>" in (folder / "report.html").read_text(
        encoding="utf-8"
    )
    assert main(["evaluate", str(folder), "--task", "retrieval", *settings("retrieval")]) == 2
    assert "has no run.json that names the data that it was trained on: give --data" in capsys.readouterr().err
