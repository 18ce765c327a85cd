"""Classified images of all kinds: read, divided into splits, and rejected with one-line errors."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diptych.config.data import Columns, DataLayout, ImageSettings
from diptych.data.images.loading import stem_of
from diptych.data.sources.base import DataError, NoSplit
from diptych.data.sources.labelled import CIFAR, ClassifiedScenes, LabelledExamples, OfClasses, open_labelled

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
    with pytest.raises(DataError, match="no images in folders of classes; expected CIFAR's pickles"):
        open_labelled(str(tmp_path), "train")
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


def test_cifar_10_is_five_files_of_train_and_one_of_test(tmp_path: Path):
    files = {f"data_batch_{i}": (i, [i % 2] * 10) for i in range(1, 6)} | {"test_batch": (9, [1, 0])}
    for name, (seed, labels) in files.items():
        content = {b"data": pixels(len(labels), seed), b"labels": labels, b"batch_label": name.encode()}
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat", b"fire_engine"]}, protocol=2))
    train, val, test = (open_labelled(str(tmp_path), split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (45, 5, 2) and list(test.classes) == ["cat", "fire_engine"]
    assert [val.label(i) for i in range(5)] == [1, 0, 1, 0, 1] and test.label(0) == 1
    assert val.where(1) == f"{tmp_path}/data_batch_2, row 9"
    assert np.array_equal(np.asarray(val.image(1)).transpose(2, 0, 1).ravel(), pixels(10, 2)[9])
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"data_batch_3: cannot be read .*CIFAR-10's batches.meta, data_batch_1"):
        open_labelled(str(tmp_path), "train")


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.new("RGB", (8, 8), (value, 100, 255 - value)).save(path)


def test_a_folder_for_each_class_is_divided_by_image_with_copies_together(tmp_path: Path):
    for i in range(60):
        picture(tmp_path / ("cat" if i % 2 else "dog") / f"{i}.png", i)
    (tmp_path / "cat" / "copy.PNG").write_bytes((tmp_path / "cat" / "1.png").read_bytes())
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    splits = {split: open_labelled(str(tmp_path), split) for split in ("train", "val", "test")}
    assert sum(map(len, splits.values())) == 61 and all(list(s.classes) == ["cat", "dog"] for s in splits.values())
    names = {split: {source.where(i) for i in range(len(source))} for split, source in splits.items()}
    first, copy = (f"{tmp_path}/cat/{name}" for name in ("1.png", "copy.PNG"))
    assert [split for split, own in names.items() if first in own] == [s for s, own in names.items() if copy in own]
    train = splits["train"]
    assert all(train.classes[train.label(i)] == Path(train.where(i)).parent.name for i in range(len(train)))
    assert "divided by image, seed 0: train" in train.division and train.division.endswith("; 2 classes")


def test_folders_of_splits_contain_a_folder_for_each_class(tmp_path: Path):
    for part, names in (("train", "ab"), ("valid", "a"), ("test", "b")):
        for name in names:
            picture(tmp_path / part / name / "deep" / "0.png", ord(name) + len(part))
    train, val, test = (open_labelled(str(tmp_path), split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (2, 1, 1) and list(val.classes) == ["a", "b"]
    assert (val.label(0), test.label(0)) == (0, 1) and "by the folders of splits" in val.division
    (tmp_path / "notes").mkdir()
    with pytest.raises(DataError, match="test is a folder of a split, but notes is none"):
        open_labelled(str(tmp_path), "val")


def test_a_table_names_the_class_of_each_image(tmp_path: Path):
    rows = ["file,kind,split"]
    for i, (name, split) in enumerate([("10", "train"), ("9", "train"), ("9", "val")]):
        picture(tmp_path / f"{i}.png", i)
        rows.append(f"{i}.png,{name},{split}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    layout = DataLayout(Columns.parse("image=file,label=kind"))
    train, val = (open_labelled(str(tmp_path), split, layout) for split in ("train", "val"))
    assert list(train.classes) == ["9", "10"] and [train.label(i) for i in range(2)] == [1, 0] and val.label(0) == 0
    assert val.where(0) == f"{tmp_path}/table.csv, line 4 (2.png)"
    with pytest.raises(DataError, match=r"no 'label' among .* --columns"):
        open_labelled(str(tmp_path), "val", DataLayout(Columns.parse("image=file")))


def test_the_class_of_a_scene_is_the_kind_of_its_largest_object():
    source = open_labelled("scenes:16", "train")
    assert isinstance(source, ClassifiedScenes) and len(source) == 16
    for i in range(16):
        things = source.scenes.scene(i).things
        areas = [(thing.box[2] - thing.box[0]) * (thing.box[3] - thing.box[1]) for thing in things]
        assert source.classes[source.label(i)] == things[areas.index(max(areas))].kind


def test_a_choice_of_classes_has_their_images_only(tmp_path: Path):
    test = open_labelled(str(write(tmp_path)), "test")
    chosen = OfClasses(test, ["cloud", "zebra", "apple"])
    assert [chosen.label(i) for i in range(len(chosen))] == [0, 2, 0, 2]
    assert chosen.where(1) == test.where(2) and chosen.stem(1) == stem_of(test, 2)
    assert np.array_equal(np.asarray(chosen.image(1)), np.asarray(test.image(2)))
