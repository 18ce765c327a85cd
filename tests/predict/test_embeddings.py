"""Files of embeddings: vectors and rows agree after interruptions at any point, in every format."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from diptych.inference.saved_model import RunError
from diptych.predict.embeddings import SUFFIXES, load_vectors, open_embeddings, part_file, rows_file
from diptych.predict.rows import left_to_do
from diptych.utils.io import DamagedFile

SETTINGS = {"command": "embed", "model": "abc"}
DIM = 3


class Stopped(Exception):
    """The process ends here."""


def row(name: str, broken: Collection[str]) -> dict[str, Any]:
    """The row of an image: a vector that depends on its name, or an error."""
    if name in broken:
        return {"image": name, "error": "broken"}
    return {"image": name, "vector": np.full(DIM, int(name), np.float32)}


def embed(
    out: Path, names: list[str], batch: int = 2, stop_after: int | None = None, broken: Collection[str] = ("broken",)
) -> None:
    with open_embeddings(str(out), SETTINGS, "image") as file:
        left = left_to_do(names, file)
        for number, start in enumerate(range(0, len(left), batch)):
            if number == stop_after:
                raise Stopped
            file.write([row(names[i], broken) for i in left[start : start + batch]])
        file.arrange(names)
        file.finish()


def content(out: Path) -> tuple[list[str], np.ndarray]:
    """The names with vectors by the rows beside a file, and the vectors in it."""
    rows = [json.loads(line) for line in rows_file(out).read_text().splitlines()]
    named = [row for row in rows if "row" in row]
    assert sorted(row["row"] for row in named) == list(range(len(named)))
    vectors = load_vectors(out)
    assert sum("error" in row for row in rows) == len(rows) - len(vectors)
    if out.suffix == ".npz":
        with np.load(out) as arrays:
            assert all(arrays["images"][row["row"]] == row["image"] for row in named)
    return [row["image"] for row in named], vectors[[row["row"] for row in named]]


NAMES = ["1", "2", "broken", "3", "4", "5"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_vectors_are_in_the_order_of_their_rows(tmp_path: Path, suffix: str):
    out = tmp_path / f"out{suffix}"
    embed(out, NAMES)
    names, vectors = content(out)
    assert names == ["1", "2", "3", "4", "5"]
    assert vectors.dtype == np.float32 and vectors[:, 0].tolist() == [1, 2, 3, 4, 5] and vectors.shape == (5, DIM)
    assert not out.with_name(f"{out.name}.part").exists()
    if suffix == ".npz":
        with np.load(out) as arrays:
            assert arrays["images"].tolist() == names and sorted(arrays) == ["images", "vectors"]
    if suffix == ".safetensors":
        assert list(load_file(out)) == ["vectors"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupted_file_is_continued_to_the_same_bytes(tmp_path: Path, suffix: str):
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    embed(whole, NAMES)
    for stop_after in (0, 1, 1):
        with pytest.raises(Stopped):
            embed(out, NAMES, stop_after=stop_after)
        assert not out.exists()
    embed(out, NAMES)
    assert out.read_bytes() == whole.read_bytes() or suffix == ".npz"  # a zip archive holds the time
    assert content(out)[0] == content(whole)[0] and np.array_equal(content(out)[1], content(whole)[1])
    embed(out, NAMES)


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_rows_and_vectors_agree_after_a_kill_at_any_write(tmp_path: Path, cut: int):
    out = tmp_path / "out.npy"
    with pytest.raises(Stopped):
        embed(out, NAMES, stop_after=2)
    lines = rows_file(out).read_text().splitlines(keepends=True)
    rows_file(out).write_text("".join(lines[:cut]) + (lines[cut][:5] if cut else ""))  # vectors were written, rows not
    embed(out, NAMES)
    names, vectors = content(out)
    assert [int(name) for name in names] == vectors[:, 0].tolist() == [1, 2, 3, 4, 5]


def test_new_images_are_added_to_a_finished_file(tmp_path: Path):
    out = tmp_path / "out.npz"
    embed(out, NAMES)
    embed(out, ["0", *NAMES])
    names, vectors = content(out)
    assert names == ["0", "1", "2", "3", "4", "5"] and vectors[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert load_vectors(out)[:, 0].tolist() == [1, 2, 3, 4, 5, 0]  # which "row" says


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("stop_after", [None, 0, 1])
def test_an_image_that_could_not_be_read_is_tried_again(tmp_path: Path, suffix: str, stop_after: int | None):
    out = tmp_path / f"out{suffix}"
    embed(out, NAMES, broken=["1", "4", "broken"])
    assert content(out)[0] == ["2", "3", "5"]
    if stop_after is not None:
        with pytest.raises(Stopped):
            embed(out, [*NAMES, "6"], 1, stop_after)
    embed(out, [*NAMES, "6"])
    names, vectors = content(out)
    assert names == ["1", "2", "3", "4", "5", "6"] and vectors[:, 0].tolist() == [1, 2, 3, 4, 5, 6]


def test_files_that_are_missing_or_not_ours_are_refused(tmp_path: Path):
    out = tmp_path / "out.npz"
    with pytest.raises(RunError, match="--out must be a file of one of "):
        embed(tmp_path / "out.txt", NAMES)
    out.write_bytes(b"mine")
    with pytest.raises(RunError, match="exists, and was not written by this command"):
        embed(out, NAMES)
    assert out.read_bytes() == b"mine"
    out.unlink()
    embed(out, NAMES)
    out.rename(tmp_path / "moved")
    with pytest.raises(RunError, match=r"out.npz is missing, whose vectors .*out.npz.jsonl lists"):
        embed(out, NAMES)


def test_a_row_that_was_removed_is_noticed(tmp_path: Path):
    out = tmp_path / "out.npz"
    embed(out, NAMES)
    rows_file(out).write_text("".join(rows_file(out).read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(DamagedFile, match='expected each "row" from 0 to 3 once'):
        embed(out, NAMES)


def test_a_damaged_file_of_vectors_is_refused(tmp_path: Path):
    out = tmp_path / "out.npy"
    embed(out, NAMES)
    np.save(out, np.zeros((5, DIM)))
    with pytest.raises(DamagedFile, match=r"expected float32 vectors \(n, d\)"):
        embed(out, [*NAMES, "6"])
    np.save(out, np.zeros((2, DIM), np.float32))
    with pytest.raises(DamagedFile, match="fewer vectors than"):
        embed(out, [*NAMES, "6"])


@pytest.mark.parametrize("size", [0, 3, 4 + 4 * 5 * DIM // 2, 4 + 4 * 5 * DIM - 1])
def test_vectors_that_are_missing_when_every_row_is_there_are_noticed(tmp_path: Path, size: int):
    """All rows were written, and the process ended before `finish`: the vectors' number and dimension are checked."""
    out = tmp_path / "out.npy"
    with pytest.raises(Stopped):
        embed(out, [*NAMES, "6"], batch=6, stop_after=1)
    with part_file(out).open("r+b") as file:
        file.truncate(size)
    with pytest.raises(DamagedFile, match="fewer vectors than"):
        embed(out, NAMES)


def test_vectors_without_rows_are_left_out_when_nothing_is_left_to_do(tmp_path: Path):
    """The rows of the last vectors were not written, and their images are gone."""
    out = tmp_path / "out.npy"
    with pytest.raises(Stopped):
        embed(out, ["1", "2", "3", "4", "5"], stop_after=2)
    lines = rows_file(out).read_text().splitlines(keepends=True)
    rows_file(out).write_text("".join(lines[:2]))
    embed(out, ["1", "2"])
    names, vectors = content(out)
    assert names == ["1", "2"] and vectors.tolist() == [[1] * DIM, [2] * DIM]
