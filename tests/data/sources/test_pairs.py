"""Pairs of images and captions passed from Python: which of them are of one image, and what a run's data is named by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diptych.data.sources.pairs import read_pairs
from tests.data.tiny_data import image_bytes

PIXELS = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two photographs whose names are numbers, which is the current one."""
    monkeypatch.chdir(tmp_path)
    for name in "01":
        (tmp_path / name).write_bytes(image_bytes(int(name)))
    return tmp_path


def test_pairs_of_one_path_are_one_image_and_images_in_memory_are_apart(place: Path):
    """A file called 1 is not the image of pair 1, and a path is the same if it is absolute."""
    pairs: list[Any] = [("1", "a"), (PIXELS, "b"), (place / "1", ["c", "d"]), ("./0", "e"), (PIXELS, "f")]
    assert list(read_pairs(pairs).places.values()) == [[0, 2], [1], [3], [4]]


def test_the_name_depends_on_captions_and_paths(place: Path):
    name = read_pairs([("0", "a"), ("1", "b")]).name
    assert name == read_pairs([("./0", ["a"]), (Path("1"), "b")]).name
    assert len({name, *(read_pairs(p).name for p in ([("1", "a"), ("0", "b")], [("0", "a"), ("1", "c")]))}) == 3
