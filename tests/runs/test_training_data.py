"""The command line and the data: which split is read, and the message on how the data was divided."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diptych.cli import main
from diptych.data.sources.captions import open_captions
from diptych.runs.run_folder import read_run

SMALL = [
    "--model.dim",
    "16",
    "--model.depth",
    "1",
    "--model.num_heads",
    "2",
    "--model.mlp_dim",
    "32",
    "--model.text_length",
    "24",
]
HOW = ["--workers", "0", "--device", "cpu", "--precision", "fp32"]


def write_photos(folder: Path, tables: dict[str, range]) -> None:
    """Writes synthetic scenes as image files, and tables with two captions for each image."""
    scenes = open_captions("scenes:60", "train")
    (folder / "images").mkdir(parents=True)
    for name, numbers in tables.items():
        rows = [json.dumps({"image": f"{i}.png", "caption": text}) for i in numbers for text in scenes.captions(i)[:2]]
        (folder / name).write_text("\n".join(rows))
        for i in numbers:
            scenes.image(i).save(folder / "images" / f"{i}.png")


def pretrain(data: Path, out: Path, *more: str) -> int:
    short = ["--batch_size", "4", "--steps", "1", "--data", str(data), "--out", str(out)]
    return main(["pretrain", "vilt.tiny", *SMALL, *short, *HOW, *more])


def test_out_may_not_be_the_data_folder(tmp_path: Path, capsys):
    write_photos(tmp_path / "photos", {"photos.jsonl": range(4)})
    before = sorted(tmp_path.rglob("*"))
    assert pretrain(tmp_path / "photos", tmp_path / "photos" / "." / "images" / "..") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "is the folder of --data; give a folder for the run, such as" in line and sorted(tmp_path.rglob("*")) == before
    )


@pytest.mark.slow
def test_each_command_prints_the_division_once_and_understands_other_words_for_splits(tmp_path: Path, capsys):
    write_photos(tmp_path / "photos", {"photos.jsonl": range(60)})
    assert pretrain(tmp_path / "photos", tmp_path / "run", "--split", "Training") == 0
    lines = capsys.readouterr().out.splitlines()
    division = "photos.jsonl: divided by image, seed 0: train 51, val 3, test 6"
    assert lines.count(division) == 1 and sum("divided" in line for line in lines) == 1
    assert read_run(tmp_path / "run")[0].split == "train"

    assert main(["evaluate", str(tmp_path / "run"), "--task", "retrieval", "--split", "VALIDATION ", *HOW]) == 0
    assert capsys.readouterr().out.splitlines().count(division) == 1
    (written,) = (tmp_path / "run").glob("evaluate-*")
    scores = json.loads((written / "metrics.json").read_text())
    assert scores["settings"]["split"] == "val" and scores["metrics"]["images"] == 3 and scores["metrics"]["texts"] == 6

    for word, why in (
        ("trainval", "more than one split"),
        ("holdout", "none of train"),
        ("test-dev", "does not exist in this format"),
    ):
        assert main(["evaluate", str(tmp_path / "run"), "--task", "retrieval", "--split", word, *HOW]) == 2
        assert pretrain(tmp_path / "photos", tmp_path / "other", "--split", word) == 2
        for line in capsys.readouterr().err.strip().splitlines():
            assert line.startswith("diptych: --split: ") and repr(word) in line and why in line
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_files_named_after_splits_are_listed_and_a_single_one_leaves_no_validation_data(tmp_path: Path, capsys):
    write_photos(tmp_path / "photos", {"training.jsonl": range(9), "dev.jsonl": range(9, 12)})
    assert pretrain(tmp_path / "photos", tmp_path / "run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("training.jsonl: named for train, counted in files: train 9, val 0, test 0") == 1
    assert lines.count("dev.jsonl: named for val, counted in files: train 0, val 3, test 0") == 1

    assert pretrain(tmp_path / "photos", tmp_path / "of-val", "--split", "valid", "--batch_size", "2") == 0
    assert "no validation during training: the run trains on the val split itself" in capsys.readouterr().out

    single = tmp_path / "photos" / "training.jsonl"
    assert pretrain(single, tmp_path / "single") == 0
    assert "no validation during training: " in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "single"), "--task", "retrieval", *HOW]) == 2
    assert "no rows in split 'val' (named for train" in capsys.readouterr().err


def test_a_row_with_an_unknown_split_stops_a_run_before_it_starts(tmp_path: Path, capsys):
    write_photos(tmp_path / "photos", {"photos.jsonl": range(3)})
    path = tmp_path / "photos" / "photos.jsonl"
    rows = [json.loads(line) | {"split": "train"} for line in path.read_text().splitlines()]
    rows[4]["split"] = "held-out"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert pretrain(tmp_path / "photos", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"diptych: {path}, line 5: split 'held-out' is none of train (training, restval), val (")
    assert not (tmp_path / "run").exists()
