"""Captions, answers, scores and embeddings of many photographs by untrained models of toy size."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diptych.api import load
from diptych.config.predict import AnswerQuestion, CaptionPhotos, Embed, ScoreTexts
from diptych.data.sources.base import DataError
from diptych.inference.folder import write_config
from diptych.inference.saved_model import RunError, read_config
from diptych.predict.photos import (
    answer_question,
    caption_photos,
    embed,
    read_lines,
    score_texts,
)
from diptych.protocols import UnsupportedOperation
from tests.data.tiny_data import image_bytes
from tests.predict.tiny_models import untrained, untrained_vqa

EXACT: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(untrained(tmp_path_factory.mktemp("runs") / "blip"))


@pytest.fixture(scope="module")
def vqa(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(untrained_vqa(tmp_path_factory.mktemp("runs") / "vqa"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five photographs and two files that are none."""
    place = tmp_path / "photos"
    place.mkdir()
    for i in range(5):
        (place / f"{i}.jpg").write_bytes(image_bytes(i, (40, 32)))
    (place / "2 broken.jpg").write_bytes(image_bytes(9, (400, 300))[:2000])
    (place / "notes.txt").write_text("no photograph")
    return place


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_captions_are_those_of_the_api(blip: str, folder: Path, tmp_path: Path):
    config = CaptionPhotos(out=str(tmp_path / "rows.jsonl"), max_length=6, batch_size=3, **EXACT)
    summary = caption_photos(blip, [str(folder)], config)
    rows = lines(tmp_path / "rows.jsonl")
    assert [Path(row["image"]).name for row in rows] == [
        "0.jpg", "1.jpg", "2 broken.jpg", "2.jpg", "3.jpg", "4.jpg", "notes.txt",
    ]  # fmt: skip
    assert "truncated" in rows[2]["error"] and rows[6]["error"].startswith("not a readable image")
    assert (summary.number, summary.earlier, len(summary.unreadable)) == (7, 0, 2)
    readable = [row for row in rows if "error" not in row]
    model = load(blip, "cpu")
    assert [row["caption"] for row in readable] == model.caption([row["image"] for row in readable], max_length=6)
    assert all(list(row) == ["image", "caption"] for row in readable)


@pytest.mark.slow
def test_an_interrupted_command_is_continued_to_the_same_file(blip: str, folder: Path, tmp_path: Path):
    config = CaptionPhotos(out=str(tmp_path / "whole.jsonl"), max_length=6, batch_size=2, **EXACT)
    caption_photos(blip, [str(folder)], config)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    config = replace(config, out=str(folder / "cut.jsonl"))  # in the folder itself: no photograph, and not listed
    caption_photos(blip, [str(folder)], config)
    assert (folder / "cut.jsonl").read_bytes() == whole
    (folder / "cut.jsonl").write_bytes(whole[: len(whole) // 2])
    summary = caption_photos(blip, [str(folder)], replace(config, batch_size=1))
    assert (folder / "cut.jsonl").read_bytes() == whole
    assert 0 < summary.earlier < summary.number == 7
    (folder / "5.jpg").write_bytes(image_bytes(5))
    (folder / "2 broken.jpg").write_bytes(image_bytes(9))
    summary = caption_photos(blip, [str(folder)], config)
    assert (summary.number, summary.earlier, summary.retried, len(summary.unreadable)) == (8, 5, 2, 1)
    rows = {Path(row["image"]).name: row for row in lines(folder / "cut.jsonl")}
    assert list(rows) == ["0.jpg", "1.jpg", "2 broken.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "notes.txt"]
    assert [name for name, row in rows.items() if "error" in row] == ["notes.txt"]


@pytest.mark.slow
def test_several_captions_and_samples(blip: str, folder: Path, tmp_path: Path):
    config = CaptionPhotos(out=str(tmp_path / "a.jsonl"), num_captions=2, top_p=0.9, max_length=6, **EXACT)
    caption_photos(blip, [str(folder / "*.jpg")], config)
    rows = [row for row in lines(tmp_path / "a.jsonl") if "error" not in row]
    assert all(len(row["captions"]) == 2 and "caption" not in row for row in rows)
    assert len({text for row in rows for text in row["captions"]}) > 2
    caption_photos(blip, [str(folder / "*.jpg")], replace(config, out=str(tmp_path / "b.jsonl"), batch_size=2))
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


@pytest.mark.slow
def test_scores_are_those_of_the_api(blip: str, folder: Path, tmp_path: Path):
    texts = ["a dog", "two cats", "a dog"]
    config = ScoreTexts(out=str(tmp_path / "rows.jsonl"), batch_size=2, **EXACT)
    score_texts(blip, [str(folder)], texts, config)
    rows = lines(tmp_path / "rows.jsonl")
    assert [row["text"] for row in rows] == texts * 7
    assert [list(row) for row in rows if "error" in row] == [["image", "text", "error"]] * 6
    scored = [row for row in rows if "error" not in row]
    model, images = load(blip, "cpu"), [row["image"] for row in scored[::3]]
    for method in ("itc", "itm"):
        expected = model.score(images, texts, method).flatten().tolist()
        assert [row[method] for row in scored] == pytest.approx(expected, abs=1e-6)
    before = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(before[: -len(before) // 3])
    score_texts(blip, [str(folder)], texts, config)
    for again, row in zip(lines(tmp_path / "rows.jsonl"), rows, strict=True):  # computed in other batches
        assert again == {name: value if isinstance(value, str) else pytest.approx(value) for name, value in row.items()}


def test_answers_are_those_of_the_api(vqa: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    answer_question(vqa, [str(folder / "0.jpg")], "is it red?", AnswerQuestion(**EXACT))
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    answer = load(vqa, "cpu").answer(folder / "0.jpg", "is it red?")[0]
    assert row == {
        "image": str(folder / "0.jpg"),
        "question": "is it red?",
        "answer": answer.text,
        "probability": pytest.approx(answer.probability),
    }
    other = next(name for name in load(vqa, "cpu").loaded.saved.labels if name != answer.text)
    answer_question(vqa, [str(folder / "0.jpg")], "is it red?", AnswerQuestion(candidates=f" {other} ,", **EXACT))
    assert json.loads(capsys.readouterr().out)["answer"] == other


@pytest.mark.slow
def test_embeddings_are_those_of_the_api(blip: str, folder: Path, tmp_path: Path):
    config = Embed(out=str(tmp_path / "images.npz"), batch_size=2, **EXACT)
    embed(blip, [str(folder)], config)
    with np.load(tmp_path / "images.npz") as arrays:
        images, vectors = arrays["images"].tolist(), arrays["vectors"]
    model = load(blip, "cpu")
    assert [Path(name).name for name in images] == [f"{i}.jpg" for i in range(5)]
    assert np.allclose(vectors, model.embed_images(images).numpy(), atol=1e-6)
    (tmp_path / "texts.txt").write_text("a dog\n\nzwei Hunde\n", encoding="utf-8")
    embed(blip, [], Embed(out=str(tmp_path / "texts.npz"), texts=str(tmp_path / "texts.txt"), **EXACT))
    with np.load(tmp_path / "texts.npz") as arrays:
        assert arrays["texts"].tolist() == ["a dog", "zwei Hunde"]
        assert np.allclose(arrays["vectors"], model.embed_texts(["a dog", "zwei Hunde"]).numpy(), atol=1e-6)


def test_what_a_model_cannot_do_is_said_before_anything_is_written(vqa: str, folder: Path, tmp_path: Path):
    out = str(tmp_path / "new" / "rows.jsonl")
    with pytest.raises(UnsupportedOperation, match="caption: this ViLT has no text decoder"):
        caption_photos(vqa, [str(folder)], CaptionPhotos(out=out, **EXACT))
    with pytest.raises(UnsupportedOperation, match="score: this ViLT"):
        score_texts(vqa, [str(folder)], ["a"], ScoreTexts(out=out, **EXACT))
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_rows_of_another_model_are_refused(blip: str, folder: Path, tmp_path: Path):
    config = Embed(out=str(tmp_path / "images.npz"), **EXACT)
    embed(blip, [str(folder)], config)
    other = str(untrained(tmp_path / "other", seed=1))
    with pytest.raises(RunError, match="has rows of another model"):
        embed(other, [str(folder)], config)


@pytest.mark.slow
def test_answers_of_a_model_with_another_answer_list_are_refused(vqa: str, folder: Path, tmp_path: Path):
    config = AnswerQuestion(out=str(tmp_path / "answers.jsonl"), **EXACT)
    answer_question(vqa, [str(folder)], "what is it?", config)
    other = shutil.copytree(vqa, tmp_path / "other")
    saved = read_config(other)
    write_config(other, replace(saved, labels=saved.labels[::-1]))  # the same weights
    with pytest.raises(RunError, match="has rows of another model"):
        answer_question(str(other), [str(folder)], "what is it?", config)


@pytest.mark.slow
def test_rows_of_a_model_with_other_settings_of_the_same_weights_are_refused(blip: str, folder: Path, tmp_path: Path):
    config = CaptionPhotos(out=str(tmp_path / "rows.jsonl"), max_length=6, **EXACT)
    caption_photos(blip, [str(folder / "0.jpg")], config)
    other = shutil.copytree(blip, tmp_path / "other")
    saved = read_config(other)
    write_config(other, replace(saved, model=replace(saved.model, num_heads=1)))  # type: ignore[call-arg]
    with pytest.raises(RunError, match="has rows of another model"):
        caption_photos(str(other), [str(folder / "0.jpg")], config)


def test_the_file_of_rows_alone_is_no_photograph(blip: str, folder: Path, tmp_path: Path):
    out = tmp_path / "rows.jsonl"
    out.write_text("")
    with pytest.raises(DataError, match=r"rows\.jsonl: expected photographs, got only files that this command writes"):
        caption_photos(blip, [str(out)], CaptionPhotos(out=str(out), **EXACT))


def test_no_readable_photograph_is_an_error(blip: str, folder: Path, tmp_path: Path):
    out = tmp_path / "rows.jsonl"
    with pytest.raises(DataError, match=r"none of 1 images can be read \(first: .*notes.txt: not a readable image"):
        caption_photos(blip, [str(folder / "notes.txt")], CaptionPhotos(out=str(out), **EXACT))
    assert "error" in lines(out)[0]


def test_texts_are_read_one_a_line(tmp_path: Path):
    path = tmp_path / "texts.txt"
    path.write_text("\ufeff a dog \r\n\n\u2028two\n", encoding="utf-8")
    assert read_lines(path) == ["a dog", "two"]
    path.write_text(" \n")
    with pytest.raises(DataError, match="expected one text a line, got an empty file"):
        read_lines(path)


def test_embeddings_are_of_unit_norm_in_bf16_too(blip: str, folder: Path):
    model = load(blip, "cpu", torch.bfloat16)
    for vectors in (model.embed_images([folder / "0.jpg", folder / "1.jpg"]), model.embed_texts(["a dog", "two cats"])):
        assert vectors.dtype == torch.float32
        assert torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-6)
