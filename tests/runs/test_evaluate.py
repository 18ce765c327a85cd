"""Fine-tuning and scoring: what stands in the files, that the control is one, and that bad samples are counted."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diptych.cli import main
from diptych.config.run import LOSSES, Evaluation
from diptych.data.loader import SkipCounter
from diptych.data.sources.answers import answer_list
from diptych.data.sources.vqa import open_questions
from diptych.metrics.vqa import normalise_answer
from diptych.models.configs import ViLTConfig
from diptych.models.vilt import recipes as vilt
from diptych.objectives.wpa import WPA
from diptych.report.sections import Curve
from diptych.runs.evaluate import evaluate, name_of, short_name, write
from diptych.runs.heat_maps import alignment
from diptych.runs.pretrain import build
from diptych.runs.report import training_sections
from diptych.runs.run_folder import RunError, read_run
from diptych.runs.scoring.base import Result, evenly_spaced
from diptych.runs.scoring.gallery import Part, open_gallery, readable_texts
from tests.runs.tiny_runs import EXACT, TRAINING, rows

SMALL = Evaluation(task="retrieval", split="train", gallery=6, captions=2, workers=0, device="cpu", precision="fp32")


def scores(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)


def predictions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_vqa_writes_metrics_predictions_and_the_leaderboard_s_file(vqa: Path):
    folder = vqa / "evaluate-vqa-scenes_50-train-fp32"
    metrics, rows_ = scores(folder)["metrics"], predictions(folder)
    asked = open_questions("scenes:50", "train")
    assert len(rows_) == metrics["questions"] == len(asked) == 250
    assert metrics["accuracy"] == pytest.approx(np.mean([row["score"] for row in rows_]))
    known = answer_list(asked, normalise_answer, 1)
    for row in rows_:
        question = asked.question(row["question_id"])
        assert (row["question"], tuple(row["truth"])) == (question.text, question.answers)
        assert row["answer"] == row["probable"][0][0] and row["answer"] in known
        assert row["score"] == float(row["answer"] == normalise_answer(question.answers[0]))
    results = json.loads((folder / "vqa_train_results.json").read_text())
    assert results == [{"question_id": row["question_id"], "answer": row["answer"]} for row in rows_]


def test_vqa_report_shows_right_and_wrong_answers(vqa: Path):
    page = (vqa / "report.html").read_text()
    assert page.count('<article class="answer') == 12
    right = sum(row["score"] >= 0.5 for row in predictions(vqa / "evaluate-vqa-scenes_50-train-fp32"))
    assert page.count('<article class="answer right"') == min(right, 6)


@pytest.mark.parametrize("blind", ["image", "text"])
def test_blind_baselines_see_nothing(vqa: Path, blind: str):
    shutil.copytree(vqa, folder := vqa.parent / f"blind-{blind}")
    assert main(["evaluate", str(folder), "--split", "train", "--ablate", blind, "--workers", "0", *EXACT]) == 0
    told = predictions(folder / f"evaluate-vqa-scenes_50-train-blind_{blind}-fp32")
    answers: dict[str, set[str]] = {}
    for row in told:
        answers.setdefault(row["question"], set()).add(row["answer"])
    if blind == "text":
        assert answers.keys() == {"?"}
    else:  # the same question on another picture of the same shape gets the same answer
        repeated = [q for q, n in Counter(row["question"] for row in told).items() if n > 1]
        assert repeated and all(len(answers[q]) == 1 for q in repeated)
    page = (folder / "report.html").read_text()
    assert "evaluate-vqa-scenes_50-train-fp32<" in page and f"blind_{blind}" in page


def test_retrieval_fine_tunes_from_the_matching_head_and_is_scored(pretrained: Path, tmp_path: Path):
    out = tmp_path / "retrieval"
    training = [*TRAINING, "--steps", "2", "--workers", "0", "--negative_texts", "2"]
    assert main(["finetune", "retrieval", "--from", str(pretrained), *training, "--out", str(out)]) == 0
    assert {"retrieval", "val/retrieval"} <= rows(out)[-1].keys() | rows(out)[0].keys()
    found = evaluate(out, SMALL)
    assert (found["images"], found["texts"]) == (6, 12)


def test_retrieval_states_the_gallery_and_keeps_result_and_control(pretrained: Path, tmp_path: Path):
    shutil.copytree(pretrained, folder := tmp_path / "run")
    found = evaluate(folder, SMALL)
    control = evaluate(folder, replace(SMALL, shuffle_captions=True))
    for metrics in (found, control):
        assert (metrics["images"], metrics["texts"], metrics["skipped"]) == (6, 12, 0)
        assert metrics["text to image R@1, chance"] == pytest.approx(1 / 6)
        assert metrics["image to text R@10, chance"] == pytest.approx(
            65 / 66
        )  # it misses where the ten are all others'
    name = "evaluate-retrieval-scenes_50-train-gallery6-captions2"
    names = (f"{name}-fp32", f"{name}-control-fp32")
    told, dealt = (predictions(folder / name) for name in names)
    assert sorted(row["text"] for row in told) == sorted(row["text"] for row in dealt)
    for metrics, lines in ((found, told), (control, dealt)):
        assert all(len(row["retrieved"]) == len(set(row["retrieved"])) == 5 for row in lines)
        for k in (1, 5):
            hits = [row["image"] in row["retrieved"][:k] for row in lines]
            assert metrics[f"text to image R@{k}"] == pytest.approx(np.mean(hits))
    page = (folder / "report.html").read_text()
    assert all(f"{name}<" in page for name in names)
    assert page.count('<article class="retrieval"') == 12  # of the result; a control has nothing to show


def test_scores_do_not_depend_on_how_pictures_and_texts_are_cut(pretrained: Path, tmp_path: Path, monkeypatch):
    shutil.copytree(pretrained, folder := tmp_path / "run")
    found = evaluate(folder, SMALL)
    first = predictions(folder / "evaluate-retrieval-scenes_50-train-gallery6-captions2-fp32")
    monkeypatch.setattr("diptych.runs.scoring.retrieval.PICTURES", 2)
    monkeypatch.setattr("diptych.runs.scoring.retrieval.TEXTS", 5)
    assert evaluate(folder, SMALL) == pytest.approx(found)
    assert predictions(folder / "evaluate-retrieval-scenes_50-train-gallery6-captions2-fp32") == first


def test_control_deals_the_same_captions_to_other_pictures():
    asked = replace(SMALL, data="scenes:50", gallery=20, captions=0)
    own, dealt = open_gallery(asked, 80), open_gallery(replace(asked, shuffle_captions=True), 80)
    assert len(own) == len(dealt) == 20
    pack = [sorted(text for i in range(20) for text in source.captions(i)) for source in (own, dealt)]
    assert pack[0] == pack[1]
    assert all(own.captions(i) != dealt.captions(i) for i in range(20))
    again = open_gallery(replace(asked, shuffle_captions=True), 80)
    assert all(dealt.captions(i) == again.captions(i) for i in range(20))
    assert own.image(3).tobytes() == dealt.image(3).tobytes()


def test_matching_falls_under_the_control_too(pretrained: Path, tmp_path: Path):
    shutil.copytree(pretrained, folder := tmp_path / "run")
    asked = replace(SMALL, task="", captions=1)
    own, dealt = evaluate(folder, asked), evaluate(folder, replace(asked, shuffle_captions=True))
    assert own["pairs"] == dealt["pairs"] == 6
    assert own["mlm"] != dealt["mlm"]  # other words stand beside each picture
    assert "itm/accuracy" in own


def test_evaluations_asked_otherwise_have_folders_of_their_own():
    own = replace(SMALL, data="there/photos", precision="auto")
    others = [replace(own, data=data) for data in ("here/photos", "there/photos.csv", "there/more/photos")]
    others += [replace(own, seed=1), replace(own, precision="fp32"), replace(own, precision="bf16", seed=11)]
    others += [replace(own, data="scenes:50"), replace(own, data="scenes:60"), replace(own, shuffle_captions=True)]
    names = {name_of(asked, "there/photos") for asked in (own, *others)}
    assert len(names) == 1 + len(others) and all(Path(name).name == name for name in names)
    assert name_of(own, "there/photos") == short_name(own), "as it was called before"


@pytest.fixture
def folder_of_photos(tmp_path: Path) -> Path:
    """Eight photographs: number 2 is truncated; the first caption of number 5 is empty; number 6 has none to read."""
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
    asked = replace(SMALL, data=str(folder_of_photos), split="val", gallery=0, captions=0)
    found = evaluate(folder, replace(asked, max_skipped=0.5))
    assert (found["images"], found["texts"]) == (6, 11)  # 5 stays with its second caption
    (there,) = folder.glob("evaluate-retrieval-photos-val-*")
    skipped = json.loads((there / "skipped.json").read_text())
    assert (
        found["skipped"] == 4 and {s["where"].split("(")[-1] for s in skipped} == {"2.jpg)", "5.jpg)", "6.jpg)"}
    ) or (any("2.jpg" in s["where"] for s in skipped))
    texts = [row["text"] for row in predictions(there)]
    assert texts == [f"photo {i} caption {j}" for i in (0, 1, 3, 4, 5, 7) for j in (0, 1) if (i, j) != (5, 0)]


def test_too_many_bad_samples_stop_the_scoring(pretrained: Path, folder_of_photos: Path, capsys):
    assert main(["evaluate", str(pretrained), "--data", str(folder_of_photos), "--task", "retrieval"]) == 2
    assert "could not be used, more than 1.0%" in capsys.readouterr().err


def test_whatever_was_answered_is_written(tmp_path: Path):
    scored = Result({}, [{"truth": ["\ud83d", "Kätzchen"]}])
    write(tmp_path / "there", Evaluation(), scored)
    assert predictions(tmp_path / "there") == scored.predictions
    assert "Kätzchen" in (tmp_path / "there" / "predictions.jsonl").read_text(encoding="utf-8")


def test_long_and_broken_captions():
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

    tally = SkipCounter(1.0)
    texts, owners = readable_texts(Odd(), tally)
    assert [len(text) for text in texts] == [4000] and owners == [0]
    assert (tally.seen, tally.bad) == (2, 1)
    assert len(Part(Odd(), range(2))) == 2


def test_pictures_are_never_augmented_when_scored(pretrained: Path, tmp_path: Path):
    shutil.copytree(pretrained, folder := tmp_path / "run")
    expected = evaluate(folder, SMALL)
    told = json.loads((folder / "run.json").read_text())
    told["run"]["images"]["augment"] = True
    del told["digest"]
    (folder / "run.json").write_text(json.dumps(told))
    assert evaluate(folder, SMALL) == expected


def test_report_is_self_contained_with_curves_floors_maps_and_findings(pretrained: Path):
    page = (pretrained / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["']?(?!data:|#)[^"'\s>]+""", page)
    assert "<script" not in page and "http" not in re.sub(r"xmlns=\S+|http-equiv", "", page)
    assert "entropy of the matching prior" in page and "unigram entropy" in page
    assert page.count('<article class="heat"') == 6
    assert "<h2>Findings</h2>" in page and "on its floor" in page
    assert "diptych pretrain" in page or "pretrain vilt.tiny" in page


def test_every_loss_has_a_curve(tmp_path: Path):
    rows_ = ({"step": i} | {f"{when}{loss}": 1.0 for loss in LOSSES for when in ("", "val/")} for i in (10, 20))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_))
    shown = {section.name for section in training_sections(tmp_path, {}) if isinstance(section, Curve)}
    assert shown == {*LOSSES, *(f"val/{loss}" for loss in LOSSES)}


def test_heat_maps_come_from_the_training_objective(pretrained: Path):
    run = vilt.tiny()
    small = replace(run, model=replace(run.model, dim=16, depth=1, num_heads=2, mlp_dim=32))
    module = build(small)
    assert alignment(module) is next(o for o in module.objectives if isinstance(o, WPA))
    assert alignment(torch.nn.Linear(1, 1)) == WPA()


def test_what_a_run_cannot_be_asked(pretrained: Path, vqa: Path):
    with pytest.raises(RunError, match="learned to contrast, to match or to rank"):
        evaluate(vqa, SMALL)
    with pytest.raises(RunError, match="diptych finetune vqa"):
        evaluate(pretrained, replace(SMALL, task="vqa"))
    with pytest.raises(RunError, match="pre-training run"):
        evaluate(vqa, replace(SMALL, task="matching"))
    with pytest.raises(RunError, match="--ablate"):
        evaluate(pretrained, replace(SMALL, ablate="text"))
    with pytest.raises(RunError, match="--shuffle_captions"):
        evaluate(vqa, replace(SMALL, task="vqa", shuffle_captions=True))


def test_the_run_is_read_back_as_it_was_written(pretrained: Path):
    run, facts = read_run(pretrained)
    assert isinstance(run.model, ViLTConfig) and run.training.steps == 24
    assert run.model.dim == 16 and run.model.grid == (5, 7)
    assert facts["examples"] == 250 and facts["unigram_entropy"] > 1


def test_spread():
    assert list(evenly_spaced(range(10), 4)) == [0, 2, 5, 7]
    assert list(evenly_spaced([1, 2], 4)) == [1, 2]
    assert list(evenly_spaced([1, 2], 0)) == []
