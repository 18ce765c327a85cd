"""caption, answer, score and embed at the command line: words, one-line errors, output, interruption."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from diptych.cli import main
from diptych.cli.arguments import pop_words
from tests.cli.test_command_line import error_of
from tests.data.tiny_data import image_bytes
from tests.predict.tiny_models import untrained
from tests.runs.tiny_runs import start_python

EXACT = ["--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(untrained(tmp_path_factory.mktemp("runs") / "blip"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with photos/, an empty folder, a run that is none, and texts.txt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "empty").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(image_bytes(i))
    (tmp_path / "texts.txt").write_text("a dog\ntwo cats\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "left", "found"),
    [
        (["run", "a.jpg", "--out", "x", "b.jpg"], ["--out", "x"], ["run", "a.jpg", "b.jpg"]),
        (["--out=x", "run"], ["--out=x"], ["run"]),
        (["run", "--", "--a.jpg", "-b.jpg"], [], ["run", "--a.jpg", "-b.jpg"]),
        (["--a", "--b", "c", "run"], ["--a", "--b", "c"], ["run"]),
    ],
)
def test_words_are_what_is_neither_flag_nor_value(words: list[str], left: list[str], found: list[str]):
    assert pop_words(words) == found
    assert words == left


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("caption", None),  # prints help
        ("caption runs/blip", "no photographs given: diptych caption RUN PHOTOS"),
        ("caption --out x", "no run given: diptych caption RUN PHOTOS"),
        ("caption runs/blip photos --num_beam 3", "no --num_beam; did you mean --num_beams?"),
        ("caption runs/blip photos --beams 3", "no --beams; did you mean --num_beams?"),
        ("caption runs/blip photos --num_beams 0", "num_beams must be in [1, 1024]: got 0"),
        ("caption runs/blip photos --top_p 2", "top_p must be in [0, 1]: got 2"),
        ("caption runs/blip nowhere.jpg", "nowhere.jpg: no such file or folder, and no glob"),
        ("caption runs/blip photos/*.png", "photos/*.png: no file matches this glob"),
        ("caption runs/blip empty", "empty: no image there: no file is one of JPEG"),
        ("caption nowhere photos", "nowhere: no such folder; expected a run folder"),
        ("caption photos photos", "photos: expected a run folder (config.json, model.safetensors) or a Hugging Face"),
        ("answer runs/vqa photos", "no question given after the run and the photographs: diptych answer RUN PHOTOS"),
        ("answer runs/vqa photos photos/0.jpg", "the last argument must be the question, and 'photos/0.jpg' is a file"),
        ("score runs/clip photos", "no text given after the run and the photographs: diptych score RUN PHOTOS"),
        ("score runs/clip photos --texts nowhere.txt", "nowhere.txt: cannot be read (No such file or directory)"),
        ("ground", None),
        ("ground runs/blip", "no photograph given: diptych ground RUN PHOTO PHRASE"),
        ("ground runs/blip photos/0.jpg", "no phrase given: diptych ground RUN PHOTO PHRASE"),
        ("ground runs/blip photos/0.jpg a_dog photos/1.jpg", "'photos/1.jpg' is a file or folder, where a phrase was"),
        ("ground runs/blip photos/0.jpg a_dog --map True", "--map is drawn into a picture: give --out, a file .png"),
        ("ground runs/blip photos/0.jpg a_dog --layer -2", "layer must be in [-1, 1000]: got -2"),
        ("ground runs/blip photos/0.jpg a_dog --method cam", "--method: expected one of itm, itc, got 'cam'"),
        ("ground runs/blip photos a_dog", "photos: expected one photograph, got 3; give the path of one"),
        ("ground runs/blip photos/0.jpg a_dog --out x.jpg", "--out x.jpg: expected a file .png"),
        ("ground nowhere photos/0.jpg a_dog", "nowhere: no such folder; expected a run folder"),
        ("embed runs/clip photos", "--out is missing: give a file .npz, .npy or .safetensors"),
        ("embed runs/clip --out x.npz", "no photographs given: diptych embed RUN PHOTOS, or embed RUN --texts FILE"),
        ("embed runs/clip photos --texts texts.txt --out x.npz", "photographs or --texts, not both: remove photos"),
    ],
)
def test_invalid_arguments_are_a_one_line_error(
    command: str, message: str | None, folder: Path, capsys: pytest.CaptureFixture[str]
):
    if message is None:
        assert main(command.split()) == 0
        assert "Examples:" in capsys.readouterr().out
    else:
        assert message in error_of(command.split(), capsys)
    assert sorted(os.listdir(folder)) == ["empty", "photos", "texts.txt"]


def test_empty_words_of_unset_variables_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert "an argument is empty" in error_of(["caption", "runs/blip", ""], capsys)
    assert "the question is empty" in error_of(["answer", "runs/vqa", "photos", " "], capsys)


@pytest.mark.slow
def test_captions_are_printed_as_rows(blip: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "photos" / "broken.jpg").touch()
    assert main(["caption", blip, "photos", "--max_length", "5", *EXACT]) == 0
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["image"] for row in rows] == [f"photos/{name}.jpg" for name in ("0", "1", "2", "broken")]
    assert printed.err == "cannot be read: photos/broken.jpg: not a readable image: the file is empty\n"


@pytest.mark.slow
def test_rows_in_a_file_are_counted_and_continued(blip: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    command = ["caption", blip, "photos", "--out", "new/rows.jsonl", "--max_length", "5", *EXACT]
    assert main(command) == main(command) == 0
    assert capsys.readouterr().out == (
        "new/rows.jsonl: 3 photographs\nnew/rows.jsonl: 3 photographs, 3 of them earlier\n"
    )
    assert len((folder / "new" / "rows.jsonl").read_text().splitlines()) == 3
    assert "has rows with max_length = 5, not 6" in error_of([*command, "--max_length", "6"], capsys)
    assert "texts.txt exists, and was not written by this command" in error_of(
        ["caption", blip, "photos", "--out", "texts.txt"], capsys
    )
    assert (folder / "texts.txt").read_text() == "a dog\ntwo cats\n"


@pytest.mark.slow
def test_scores_and_embeddings(blip: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["score", blip, "photos/0.jpg", "photos/1.jpg", "a dog", *EXACT]) == 0
    assert main(["score", blip, "photos/0.jpg", "--texts", "texts.txt", *EXACT]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["image"][-5], row["text"]) for row in rows] == [
        ("0", "a dog"), ("1", "a dog"), ("0", "a dog"), ("0", "two cats"),
    ]  # fmt: skip
    assert all(0 <= row["itm"] <= 1 and -1 <= row["itc"] <= 1 for row in rows)
    assert main(["embed", blip, "photos", "--out", "photos.npz", *EXACT]) == 0
    assert main(["embed", blip, "--texts", "texts.txt", "--out", "texts.npz", *EXACT]) == 0
    with np.load("photos.npz") as images, np.load("texts.npz") as texts:
        cosines = images["vectors"] @ texts["vectors"].T
        assert cosines[:2, 0].tolist() == pytest.approx([row["itc"] for row in rows[:2]], abs=1e-6)
    assert capsys.readouterr().out == "photos.npz: 3 photographs\ntexts.npz: 2 texts\n"


def test_a_model_that_cannot_is_a_one_line_error(blip: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    message = error_of(["answer", blip, "photos", "is it red?", *EXACT], capsys)
    assert message.startswith("diptych: answer: this BLIP was not trained to answer")


@pytest.mark.slow
def test_ctrl_c_leaves_whole_lines_and_the_command_continues(blip: str, folder: Path):
    for i in range(200):
        (folder / "photos" / f"{i}.jpg").write_bytes(image_bytes(i))
    quick = ["--max_length", "5", "--num_beams", "1", "--batch_size", "1"]
    command = ["-m", "diptych", "caption", blip, "photos", "--out", "rows.jsonl", *quick, *EXACT]
    out = folder / "rows.jsonl"
    process = start_python(*command)
    deadline = time.monotonic() + 120
    while not out.exists() or out.read_bytes().count(b"\n") < 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert process.returncode == 130 and "interrupted" in err
    assert 4 <= len(rows) < 200 and out.read_bytes().endswith(b"\n")
    process = start_python(*command, "--batch_size", "64")
    assert process.communicate(timeout=120)[0].startswith(f"rows.jsonl: 200 photographs, {len(rows)} of them earlier")
    names = [json.loads(line)["image"] for line in out.read_text().splitlines()]
    assert names == [f"photos/{i}.jpg" for i in range(200)]


@pytest.mark.slow
def test_a_reader_that_ends_early_ends_the_command_without_a_message(blip: str, folder: Path):
    command = ["-m", "diptych", "caption", blip, "photos", "--batch_size", "1", "--max_length", "5", *EXACT]
    process = start_python(*command)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(120) == 141
    assert process.stderr.read() == ""


@pytest.mark.slow
def test_ground_prints_a_row_for_each_phrase_or_writes_a_picture(
    blip: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["ground", blip, "photos/0.jpg", "a dog", "naïve 北京", "--device", "cpu"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(row) for row in rows] == [["image", "phrase", "box", "score", "method"]] * 2
    assert [row["phrase"] for row in rows] == ["a dog", "naïve 北京"]
    assert (
        main(["ground", blip, "photos/0.jpg", "a dog", "--device", "cpu", "--out", "boxed.png", "--map", "True"]) == 0
    )
    assert capsys.readouterr().out == "boxed.png: 1 phrase\n"
    assert (folder / "boxed.png").is_file()
