"""Evaluation: metrics, predictions and reports; controls at chance; bad samples skipped and counted."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import diptych
from diptych.cli import main
from diptych.config.objectives import Objectives
from diptych.config.run import Finetune
from diptych.config.tasks import VQA, Evaluation, Matching, Retrieval, VQAOptions
from diptych.data.loader import SkipCounter
from diptych.data.sources.answers import answer_list
from diptych.data.sources.subsets import CaptionSubset
from diptych.data.sources.vqa import open_questions
from diptych.inference.folder import write_config
from diptych.inference.saved_model import RunError, read_config
from diptych.metrics.vqa import normalise_answer
from diptych.models.configs import ViLTConfig
from diptych.models.vilt import recipes as vilt
from diptych.report.sections import Curve
from diptych.runs.evaluate import complete, evaluate, name_of, short_name, write
from diptych.runs.load_model import load_model
from diptych.runs.report import training_sections
from diptych.runs.run_folder import read_run, write_run
from diptych.tasks.definition import Result, evenly_spaced
from diptych.tasks.gallery import open_gallery, readable_texts
from tests.runs.tiny_runs import EXACT, TRAINING, rows, write_model

SMALL = Retrieval(split="train", gallery=6, captions=2, workers=0, device="cpu", precision="fp32")


def scores(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)


def predictions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_vqa_writes_metrics_predictions_and_the_leaderboard_file(vqa: Path):
    folder = vqa / "evaluate-vqa-scenes_50-train-fp32"
    metrics, rows_ = scores(folder)["metrics"], predictions(folder)
    source = open_questions("scenes:50", "train")
    assert len(rows_) == metrics["questions"] == len(source) == 250
    assert metrics["accuracy"] == pytest.approx(np.mean([row["score"] for row in rows_]))
    answers = answer_list(source, normalise_answer, 1)
    for row in rows_:
        question = source.question(row["question_id"])
        assert (row["question"], tuple(row["truth"])) == (question.text, question.answers)
        assert row["answer"] == row["probable"][0][0] and row["answer"] in answers
        assert row["score"] == float(row["answer"] == normalise_answer(question.answers[0]))
    results = json.loads((folder / "vqa_train_results.json").read_text())
    assert results == [{"question_id": row["question_id"], "answer": row["answer"]} for row in rows_]


def test_vqa_report_shows_right_and_wrong_answers(vqa: Path):
    page = (vqa / "report.html").read_text()
    assert page.count('<article class="answer') == 12
    right = sum(row["score"] >= 0.5 for row in predictions(vqa / "evaluate-vqa-scenes_50-train-fp32"))
    assert page.count('<article class="answer right"') == min(right, 6)


@pytest.mark.parametrize("ablate", ["image", "text"])
def test_an_ablated_part_of_the_question_has_no_influence(vqa: Path, ablate: str):
    shutil.copytree(vqa, folder := vqa.parent / f"ablate-{ablate}")
    assert main(["evaluate", str(folder), "--split", "train", "--ablate", ablate, "--workers", "0", *EXACT]) == 0
    ablated = predictions(folder / f"evaluate-vqa-scenes_50-train-ablate_{ablate}-fp32")
    answers: dict[str, set[str]] = {}
    for row in ablated:
        answers.setdefault(row["question"], set()).add(row["answer"])
    if ablate == "text":
        assert answers.keys() == {"?"}
    else:  # the same question on another image of the same shape has the same answer
        repeated = [q for q, n in Counter(row["question"] for row in ablated).items() if n > 1]
        assert repeated and all(len(answers[q]) == 1 for q in repeated)
    page = (folder / "report.html").read_text()
    assert "evaluate-vqa-scenes_50-train-fp32<" in page and f"ablate_{ablate}" in page


def test_a_baseline_is_evaluated_as_it_was_trained_also_as_a_copy_and_answers_nothing(vqa: Path, tmp_path: Path):
    run, _ = read_run(vqa)
    assert isinstance(run, Finetune)
    blind = replace(run, options=VQAOptions(ablate="image"))
    loaded = load_model(vqa, torch.device("cpu"))
    write_model(tmp_path / "blind", blind, loaded.module, loaded.saved.labels)
    copy = diptych.load(tmp_path / "blind", device="cpu").save(tmp_path / "copy")
    completed = complete(VQA(data="scenes:50"), copy)
    assert isinstance(completed, VQA) and completed.ablate == "image"
    model = diptych.load(copy, device="cpu")
    assert not model.can("answer")
    with pytest.raises(diptych.UnsupportedOperation, match="was trained with image ablated"):
        model.predict(Pillow.new("RGB", (64, 64)), "is it red?")


def test_retrieval_is_fine_tuned_from_the_itm_head_and_evaluated(pretrained: Path, tmp_path: Path):
    out = tmp_path / "retrieval"
    training = [*TRAINING, "--steps", "2", "--workers", "0", "--negative_texts", "2"]
    assert main(["finetune", "retrieval", "--init_from", str(pretrained), *training, "--out", str(out)]) == 0
    assert {"retrieval", "val/retrieval"} <= rows(out)[-1].keys() | rows(out)[0].keys()
    metrics = evaluate(out, SMALL)
    assert (metrics["images"], metrics["texts"]) == (6, 12)


def test_retrieval_states_the_gallery_size_and_writes_result_and_control_apart(pretrained: Path, tmp_path: Path):
    shutil.copytree(pretrained, folder := tmp_path / "run")
    result = evaluate(folder, SMALL)
    control = evaluate(folder, replace(SMALL, shuffle_captions=True))
    for metrics in (result, control):
        assert (metrics["images"], metrics["texts"], metrics["skipped"]) == (6, 12, 0)
        assert metrics["text to image R@1, chance"] == pytest.approx(1 / 6)
        assert metrics["image to text R@10, chance"] == pytest.approx(
            65 / 66
        )  # missed if all ten are other images' captions
    name = "evaluate-retrieval-scenes_50-train-gallery_6-captions_2"
    names = (f"{name}-fp32", f"{name}-shuffle_captions-fp32")
    own, shuffled = (predictions(folder / name) for name in names)
    assert sorted(row["text"] for row in own) == sorted(row["text"] for row in shuffled)
    for metrics, lines in ((result, own), (control, shuffled)):
        assert all(len(row["retrieved"]) == len(set(row["retrieved"])) == 5 for row in lines)
        for k in (1, 5):
            hits = [row["image"] in row["retrieved"][:k] for row in lines]
            assert metrics[f"text to image R@{k}"] == pytest.approx(np.mean(hits))
    page = (folder / "report.html").read_text()
    assert all(f"{name}<" in page for name in names)
    assert page.count('<article class="retrieval"') == 12  # those of the result; a control has no examples


def test_scores_do_not_depend_on_the_sizes_of_chunks(pretrained: Path, tmp_path: Path, monkeypatch):
    shutil.copytree(pretrained, folder := tmp_path / "run")
    metrics = evaluate(folder, SMALL)
    first = predictions(folder / "evaluate-retrieval-scenes_50-train-gallery_6-captions_2-fp32")
    monkeypatch.setattr("diptych.tasks.retrieval.IMAGE_BATCH", 2)
    monkeypatch.setattr("diptych.tasks.retrieval.TEXT_BATCH", 5)
    assert evaluate(folder, SMALL) == pytest.approx(metrics)
    assert predictions(folder / "evaluate-retrieval-scenes_50-train-gallery_6-captions_2-fp32") == first


def test_shuffled_captions_are_the_same_captions_on_other_images():
    settings = replace(SMALL, data="scenes:50", gallery=20, captions=0)
    own, shuffled = open_gallery(settings, 80), open_gallery(replace(settings, shuffle_captions=True), 80)
    assert len(own) == len(shuffled) == 20
    texts = [sorted(text for i in range(20) for text in source.captions(i)) for source in (own, shuffled)]
    assert texts[0] == texts[1]
    assert all(own.captions(i) != shuffled.captions(i) for i in range(20))
    again = open_gallery(replace(settings, shuffle_captions=True), 80)
    assert all(shuffled.captions(i) == again.captions(i) for i in range(20))
    assert own.image(3).tobytes() == shuffled.image(3).tobytes()


def test_shuffled_captions_change_the_losses_of_matching(pretrained: Path, tmp_path: Path):
    shutil.copytree(pretrained, folder := tmp_path / "run")
    settings = Matching(split="train", gallery=6, captions=1, workers=0, device="cpu", precision="fp32")
    own, shuffled = evaluate(folder, settings), evaluate(folder, replace(settings, shuffle_captions=True))
    assert own["pairs"] == shuffled["pairs"] == 6
    assert own["mlm"] != shuffled["mlm"]  # each image has different captions
    assert "itm/accuracy" in own


def test_evaluations_with_different_settings_have_different_folders():
    own = replace(SMALL, data="there/photos", precision="auto")
    others = [replace(own, data=data) for data in ("here/photos", "there/photos.csv", "there/more/photos")]
    others += [replace(own, seed=1), replace(own, precision="fp32"), replace(own, precision="bf16", seed=11)]
    others += [replace(own, data="scenes:50"), replace(own, data="scenes:60"), replace(own, shuffle_captions=True)]
    names = {name_of(settings, "there/photos") for settings in (own, *others)}
    assert len(names) == 1 + len(others) and all(Path(name).name == name for name in names)
    assert name_of(own, "there/photos") == short_name(own)


@pytest.fixture
def folder_of_photos(tmp_path: Path) -> Path:
    """Eight photographs: number 2 is truncated, the first caption of number 5 is blank, both of number 6 are."""
    random, lines = np.random.default_rng(0), []
    (data := tmp_path / "photos").mkdir()
    for i in range(8):
        Pillow.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(data / f"{i}.jpg")
        texts = [" " if i == 6 or (i == 5 and j == 0) else f"photo {i} caption {j}" for j in range(2)]
        lines += [json.dumps({"image": f"{i}.jpg", "caption": text}) for text in texts]
    (data / "2.jpg").write_bytes((data / "2.jpg").read_bytes()[:400])
    (data / "captions_val.jsonl").write_text("\n".join(lines))
    return data


def test_bad_samples_are_skipped_counted_and_listed(pretrained: Path, tmp_path: Path, folder_of_photos: Path):
    shutil.copytree(pretrained, folder := tmp_path / "run")
    settings = replace(SMALL, data=str(folder_of_photos), split="val", gallery=0, captions=0)
    metrics = evaluate(folder, replace(settings, max_skipped=0.5))
    assert (metrics["images"], metrics["texts"]) == (6, 11)  # number 5 has its second caption
    (written,) = folder.glob("evaluate-retrieval-photos-val-*")
    skipped = json.loads((written / "skipped.json").read_text())
    expected = ["captions_val.jsonl, line 11 (5.jpg)", "captions_val.jsonl, line 13 (6.jpg)", "2.jpg"]
    assert [s["where"] for s in skipped] == [str(folder_of_photos / place) for place in expected]
    assert metrics["skipped"] == 4, "both captions of number 6, at one place"
    texts = [row["text"] for row in predictions(written)]
    assert texts == [f"photo {i} caption {j}" for i in (0, 1, 3, 4, 5, 7) for j in (0, 1) if (i, j) != (5, 0)]


def test_too_many_bad_samples_stop_the_evaluation(pretrained: Path, folder_of_photos: Path, capsys):
    assert main(["evaluate", str(pretrained), "--data", str(folder_of_photos), "--task", "retrieval"]) == 2
    assert "could not be used, more than 1.0%" in capsys.readouterr().err


def test_predictions_with_lone_surrogates_are_written(tmp_path: Path):
    result = Result({}, [{"truth": ["\ud83d", "Kätzchen"]}])
    write(tmp_path / "there", Matching(), result)
    assert predictions(tmp_path / "there") == result.predictions
    assert "Kätzchen" in (tmp_path / "there" / "predictions.jsonl").read_text(encoding="utf-8")


def test_long_captions_are_truncated_and_undecodable_ones_skipped():
    class Odd:
        name, split = "odd", "val"

        def __len__(self) -> int:
            return 2

        def captions(self, index: int) -> tuple[str, ...]:
            return ("x" * 9000, "\ud800 broken")[index : index + 1]

        def where(self, index: int) -> str:
            return f"row {index}"

        def image(self, index: int) -> Pillow.Image:
            raise NotImplementedError

    counter = SkipCounter(1.0)
    texts, owners = readable_texts(Odd(), counter)
    assert [len(text) for text in texts] == [4000] and owners == [0]
    assert (counter.num_samples, counter.num_skipped) == (2, 1)
    assert len(CaptionSubset(Odd(), range(2))) == 2


def test_images_are_never_augmented_in_evaluation(pretrained: Path, tmp_path: Path):
    shutil.copytree(pretrained, folder := tmp_path / "run")
    expected = evaluate(folder, SMALL)
    saved = read_config(folder)
    write_config(folder, replace(saved, images=replace(saved.images, augment=True)))
    assert evaluate(folder, SMALL) == expected


def test_report_is_self_contained_with_curves_chance_levels_heat_maps_and_findings(pretrained: Path):
    page = (pretrained / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["']?(?!data:|#)[^"'\s>]+""", page)
    assert "<script" not in page and "http" not in re.sub(r"xmlns=\S+|http-equiv", "", page)
    assert "predicting the share of matched pairs" in page and "unigram entropy" in page
    assert page.count('<article class="heat"') == 6
    findings = json.loads((pretrained / "diagnostics.json").read_text())["findings"]
    assert any(finding["verdict"] in ("early", "stuck") for finding in findings), "some loss is still at chance level"
    assert "<h2>Findings</h2>" in page and all(finding["message"] in html.unescape(page) for finding in findings)
    assert "pretrain vilt.tiny" in page


def test_every_loss_has_a_curve(tmp_path: Path):
    losses = [field.name for field in fields(Objectives)]
    rows_ = ({"step": i} | {f"{when}{loss}": 1.0 for loss in losses for when in ("", "val/")} for i in (10, 20))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_))
    write_run(tmp_path, vilt.tiny(), {}, ())
    names = {section.name for section in training_sections(tmp_path) if isinstance(section, Curve)}
    assert names == {*losses, *(f"val/{loss}" for loss in losses)}


def test_tasks_and_settings_that_do_not_fit_a_run_raise(pretrained: Path, vqa: Path):
    with pytest.raises(RunError, match="a contrastive, matching or ranking loss"):
        evaluate(vqa, SMALL)
    with pytest.raises(RunError, match="diptych finetune vqa"):
        evaluate(pretrained, VQA(split="train", workers=0, device="cpu"))
    with pytest.raises(RunError, match="pre-training run"):
        evaluate(vqa, Matching(split="train", workers=0, device="cpu"))
    with pytest.raises(
        RunError, match="give one of Retrieval, Captioning, VQA, Grounding, Matching, Classification, not Evaluation"
    ):
        evaluate(pretrained, Evaluation())


def test_run_json_is_read_back_as_it_was_written(pretrained: Path):
    run, facts = read_run(pretrained)
    assert isinstance(run.model, ViLTConfig) and run.training.steps == 24
    assert run.model.dim == 16 and run.model.grid == (5, 7)
    assert facts["examples"] == 250 and facts["unigram_entropy"] > 1


def test_evenly_spaced():
    assert list(evenly_spaced(range(10), 4)) == [0, 2, 5, 7]
    assert list(evenly_spaced([1, 2], 4)) == [1, 2]
    assert list(evenly_spaced([1, 2], 0)) == []
