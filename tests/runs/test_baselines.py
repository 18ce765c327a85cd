"""Baselines by guessing: scores by hand, and the command, which decodes no image and writes only to --out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diptych.cli import main
from diptych.config.tasks import VQA, Matching, Retrieval
from diptych.metrics.vqa import BEST_OF_ANY
from diptych.runs.baselines import baselines
from diptych.runs.evaluate import evaluate

QUESTIONS = [  # image, question, answer, split
    ("0.jpg", "What is it?", ["a cat", "cat", "dog"], "train"),
    ("0.jpg", "What is it?", ["cat"], "train"),
    ("1.jpg", "What is this?", ["dog"], "train"),
    ("1.jpg", "How many?", ["two"], "train"),
    ("0.jpg", "What is it?", ["dog", "dog", "cat"], "val"),  # cat: one of three
    ("1.jpg", "How many?", ["2"], "val"),
    ("1.jpg", "Why?", ["The Cat."], "val"),
]


@pytest.fixture
def question_folder(tmp_path: Path) -> Path:
    """Questions about two images that cannot be decoded."""
    (folder := tmp_path / "photos").mkdir()
    for name in ("0.jpg", "1.jpg"):
        (folder / name).write_bytes(b"not an image")
    for split in ("train", "val"):
        rows = [dict(zip(("image", "question", "answer"), row, strict=False)) for row in QUESTIONS if row[3] == split]
        (folder / f"questions_{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_vqa_baselines_equal_scores_by_hand(question_folder: Path):
    scores = baselines(VQA(data=str(question_folder)))
    assert scores.keys() == {"most common answer", "question only", BEST_OF_ANY}
    one_of_three = 2 / 9  # without either dog, min(1, 1 / 3); without the cat, 0
    assert scores["most common answer"] == {"accuracy": pytest.approx((one_of_three + 0 + 1) / 3)}
    assert scores["question only"] == {"accuracy": pytest.approx((one_of_three + 1 + 1) / 3)}
    two_of_three = (1 / 3 + 1 / 3 + 2 / 3) / 3
    assert scores[BEST_OF_ANY] == {"accuracy": pytest.approx((two_of_three + 1 + 1) / 3)}


def test_withheld_answers_are_an_error_and_the_division_is_printed(
    question_folder: Path, capsys: pytest.CaptureFixture[str]
):
    baselines(VQA(data=str(question_folder)))
    assert "questions_val.jsonl: named for val, counted in files: train 0, val 2, test 0" in capsys.readouterr().out
    rows = [{"image": "0.jpg", "question": "Why?", "answer": []}]
    (question_folder / "questions_test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["baselines", "--task", "vqa", "--data", str(question_folder), "--split", "test"]) == 2
    assert "photos (test): its questions have no answers" in capsys.readouterr().err


def test_scores_are_given_for_each_kind_of_question():
    scores = baselines(VQA(data="scenes:20", split="train"))
    assert (
        scores["most common answer"]["accuracy"] < scores["by kind"]["accuracy"] < scores["question only"]["accuracy"]
    )
    assert {"accuracy, count", "accuracy, color"} < scores["by kind"].keys()


def test_chance_of_retrieval_equals_that_of_the_evaluation(pretrained: Path, tmp_path: Path):
    gallery = Retrieval(
        data="scenes:50",
        split="train",
        gallery=4,
        captions=2,
        workers=0,
        device="cpu",
        precision="fp32",
    )
    (chance,) = baselines(gallery).values()
    (folder := tmp_path / "run").mkdir()
    for name in ("config.json", "run.json", "model.safetensors"):
        (folder / name).write_bytes((pretrained / name).read_bytes())
    scores = evaluate(folder, gallery)
    assert (chance["images"], chance["texts"]) == (scores["images"], scores["texts"]) == (4, 8)
    for way in ("image to text", "text to image"):
        for k in (1, 5, 10):
            assert chance[f"{way} R@{k}"] == scores[f"{way} R@{k}, chance"]


def test_chance_of_matching_equals_the_chance_losses_of_training(pretrained: Path):
    (chance,) = baselines(Matching(data="scenes:50", split="train")).values()
    chance_losses = json.loads((pretrained / "diagnostics.json").read_text())["chance"]
    assert chance == {name: chance_losses[name]["value"] for name in ("itm", "mlm")} | {"itm/accuracy": 0.5}


def test_the_command_prints_a_table_and_writes_only_to_out(
    question_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (empty := tmp_path / "empty").mkdir()
    monkeypatch.chdir(empty)
    command = ["baselines", "--task", "vqa", "--data", str(question_folder), "--split", "val"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "question only" in output and "0.7407" in output and "0.4074" in output
    assert not list(empty.iterdir())
    assert main([*command, "--out", "guessed.json"]) == 0
    written = json.loads((empty / "guessed.json").read_text())
    assert written["baselines"]["question only"]["accuracy"] == pytest.approx(0.7407, abs=1e-4)
    assert written["settings"]["data"] == str(question_folder)


def test_a_folder_without_questions_is_an_error_that_tells_the_expected_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "captions.jsonl").write_text('{"image": "0.jpg", "caption": "a cat"}')
    assert main(["baselines", "--task", "vqa", "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}: no file with questions of train; expected *questions*.json" in error
    assert (
        "columns image, question, answer; captions.jsonl has neither question nor answer; give --data a folder that "
        "has them" in error
    )
