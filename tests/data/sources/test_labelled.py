"""CIFAR-100's files: read without running their pickles, divided into splits, and rejected with one-line errors."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diptych.config.data import ImageSettings
from diptych.data.sources.base import DataError, NoSplit
from diptych.data.sources.labelled import CIFAR, LabelledExamples, OfClasses, open_labelled

CLASSES = [b"apple", b"bear", b"cloud"]


def pixels(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def write(folder: Path) -> Path:
    """A data set of 30 and 6 images, in CIFAR's pickles."""
    folder.mkdir(exist_ok=True)
    train = {b"data": pixels(30, 0), b"fine_labels": [i % 3 for i in range(30)]}
    files = {
        "meta": {b"fine_label_names": CLASSES},
        "train": train,
        "test": {b"data": pixels(6, 1), b"fine_labels": [2, 1, 0, 2, 1, 0]},
    }
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def test_splits_share_no_image(tmp_path: Path):
    train, val, test = (CIFAR(write(tmp_path), split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (27, 3, 6) and not set(train.rows) & set(val.rows)
    assert [test.label(i) for i in range(6)] == [2, 1, 0, 2, 1, 0] and val.label(0) == 0
    image = np.asarray(val.image(1))
    assert image.shape == (32, 32, 3) and np.array_equal(image.transpose(2, 0, 1).ravel(), pixels(30, 0)[19])
    assert train.classes == ["apple", "bear", "cloud"] and val.where(0).endswith("train, row 9")


def test_rows_with_the_same_image_are_in_one_split(tmp_path: Path):
    """The first copy decides: row 9 is in val, and so is its copy; row 12 and its copies are not."""
    data = pixels(30, 0)
    data[15], data[19], data[29] = data[9], data[12], data[12]
    train = {b"data": data, b"fine_labels": [0] * 30}
    (write(tmp_path) / "train").write_bytes(pickle.dumps(train, protocol=2))
    assert CIFAR(tmp_path, "validation").rows == [9, 15]
    kept = CIFAR(tmp_path, "TRAIN")
    assert kept.rows == [i for i in range(30) if i not in (9, 15)]
    assert kept.division == f"{tmp_path.name}: file train, every 10th image of it as val: train 28, val 2, test 0"
    with pytest.raises(DataError, match="--split: 'trainval' is more than one split"):
        CIFAR(tmp_path, "trainval")


def test_a_batch_contains_pixels_and_classes_and_is_mirrored_by_key(tmp_path: Path):
    settings = ImageSettings(shorter_side=32, square=True)
    source = CIFAR(write(tmp_path), "train")
    plain, mirrored = (LabelledExamples(source, settings, m) for m in (False, True))
    ids = list(range(20))
    straight = plain.collate([plain.load(i, 0, 0) for i in ids], ids, 0, 0)
    turned = mirrored.collate([mirrored.load(i, 0, 0) for i in ids], ids, 0, 0)
    assert straight.image is not None and turned.image is not None
    assert straight.labels["class"].tolist() == [plain.source.label(i) for i in ids]
    same = [torch.equal(a, b) for a, b in zip(straight.image.pixels, turned.image.pixels, strict=True)]
    flipped = [torch.equal(a, b.flip(2)) for a, b in zip(straight.image.pixels, turned.image.pixels, strict=True)]
    assert [a != b for a, b in zip(same, flipped, strict=True)] == [True] * 20 and 3 < sum(flipped) < 17
    again = mirrored.collate([mirrored.load(i, 0, 0) for i in ids], ids, 0, 0)
    assert again.image is not None and torch.equal(again.image.pixels, turned.image.pixels)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({b"fine_labels": [3] * 30}, "label 3 is none of the 3 classes"),
        ({b"fine_labels": [0] * 29}, "expected uint8 pixels of shape"),
        ({b"data": pixels(30, 0)[:, :-1]}, r"got uint8 \(30, 3071\)"),
        ({b"data": [1, 2]}, "no data in it; name a folder of CIFAR-100"),
        ({b"extra": os.system}, "which could run code"),
    ],
)
def test_invalid_files_raise_with_the_cause(tmp_path: Path, changed: dict[Any, Any], message: str):
    write(tmp_path)
    content = pickle.loads((tmp_path / "train").read_bytes()) | changed
    (tmp_path / "train").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=message):
        CIFAR(tmp_path, "train")


def test_a_split_without_images_raises(tmp_path: Path):
    write(tmp_path)
    (tmp_path / "train").write_bytes(pickle.dumps({b"data": pixels(9, 0), b"fine_labels": [0] * 9}, protocol=2))
    assert len(CIFAR(tmp_path, "train")) == 9
    with pytest.raises(
        NoSplit, match=r"train: no image in split 'val' \(.*: train 9, val 0, test 0\); name another split"
    ):
        CIFAR(tmp_path, "val")


def test_a_folder_without_the_files_raises(tmp_path: Path):
    with pytest.raises(DataError, match="CIFAR-100's meta, train and test"):
        CIFAR(tmp_path, "train")
    with pytest.raises(DataError, match="split 'spring' is none of"):
        CIFAR(write(tmp_path), "spring")


@pytest.mark.slow
def test_the_published_files_are_read(tmp_path: Path):
    root = Path(os.environ.get("DIPTYCH_DATA", "")) / "cifar-100-python"
    if not (root / "meta").is_file():
        pytest.skip("set DIPTYCH_DATA to a folder with cifar-100-python to read it")
    train, val, test = (CIFAR(root, split) for split in ("train", "val", "test"))
    assert len(train.classes) == 100 and len(train) == 9 * len(val) and len(test) > 0
    assert {val.label(i) for i in range(len(val))} == set(range(100))
