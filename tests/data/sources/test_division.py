"""A division is made by picture, whatever names and however many rows it has."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.data.sources.base import Captioned, DataError, NoSplit
from diptych.data.sources.captions import open_captions
from diptych.data.sources.splits import SPLITS, drawn_split
from diptych.data.sources.vqa import open_questions
from tests.data.tiny_data import picture_bytes, write_pictures

N = 12
SPELLINGS = ("{}.jpg", "./{}.jpg", "images/{}.jpg", "images//{}.jpg", "copy-{}.jpg", "link-{}.jpg", "./images/./{}.jpg")
reuse = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
listings = st.lists(st.tuples(st.integers(0, N - 1), st.sampled_from(SPELLINGS)), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, each under its name, as a copy and as a link."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in write_pictures(folder, N):
        place = folder / "images" / f"{int(name[:3])}.jpg"
        (folder / "images" / name).rename(place)
        shutil.copy(place, folder / f"copy-{place.name}")
        os.symlink(place, folder / f"link-{place.name}")
    return folder


def opened(spec: Path | str) -> dict[str, Captioned]:
    """Each split that has something."""
    found = {}
    for split in SPLITS:
        try:
            found[split] = open_captions(str(spec), split)
        except NoSplit:
            continue
    return found


def said_in(source: Captioned) -> list[str]:
    return [text for i in range(len(source)) for text in source.captions(i)]


def write_listing(folder: Path, listing: list[tuple[int, str]], kind: str) -> Path:
    """A caption a row, which says the row's number and its picture's."""
    rows = [(spelling.format(n), f"{at} {n}") for at, (n, spelling) in enumerate(listing)]
    path = folder / f"listed.{kind}"
    if kind == "json":
        images = [{"id": at, "file_name": name} for at, (name, _) in enumerate(rows)]
        notes = [{"image_id": at, "caption": text} for at, (_, text) in enumerate(rows)]
        path.write_text(json.dumps({"images": images, "annotations": notes}))
    else:
        path.write_text("\n".join(json.dumps({"image": name, "caption": text}) for name, text in rows))
    return path


@given(listings, st.sampled_from(["jsonl", "json"]), st.randoms(use_true_random=False))
@reuse
def test_every_row_is_in_one_split_and_every_picture(folder, listing, kind, random):
    found = {split: said_in(source) for split, source in opened(write_listing(folder, listing, kind)).items()}
    assert sorted(text for said in found.values() for text in said) == sorted(
        f"{at} {n}" for at, (n, _) in enumerate(listing)
    )
    pictures = {split: {text.split()[1] for text in said} for split, said in found.items()}
    assert sum(map(len, pictures.values())) == len({n for n, _ in listing})

    random.shuffle(listing)
    again = {split: said_in(source) for split, source in opened(write_listing(folder, listing, kind)).items()}
    assert {split: {text.split()[1] for text in said} for split, said in again.items()} == pictures, "in any order"


@given(listings)
@reuse
def test_images_that_are_the_same_picture_are_told_and_spellings_of_a_path_are_one_image(folder, listing):
    for source in opened(write_listing(folder, listing, "jsonl")).values():
        shown = [source.captions(i)[0].split()[1] for i in range(len(source))]
        assert list(source.pictures()) == [shown.index(n) for n in shown]  # type: ignore[attr-defined]
        files = [source.where(i).split("(")[-1] for i in range(len(source))]
        assert len(set(files)) == len(files)


def test_a_file_of_one_split_counts_a_picture_once_however_its_path_is_spelled(folder):
    rows = [{"image": spelling.format(3), "caption": "x"} for spelling in ("{}.jpg", "./{}.jpg", "images/{}.jpg")]
    (folder / "val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_captions(str(folder / "val.jsonl"), "val")
    assert len(source) == 1 and source.captions(0) == ("x",) * 3
    assert source.division == "val.jsonl: named for val, counted in files: train 0, val 1, test 0"  # type: ignore[attr-defined]


def test_plain_names_are_drawn_as_ever(folder):
    path = write_listing(folder, [(n, "{}.jpg") for n in range(N)], "jsonl")
    for split, source in opened(path).items():
        assert {drawn_split(f"{text.split()[1]}.jpg", 0) for text in said_in(source)} == {split}


@pytest.mark.parametrize("spelling", ["./{}.jpg", ".//{}.jpg", "././{}.jpg"])
def test_other_spellings_of_a_path_are_drawn_as_the_plain_name(folder: Path, spelling: str):
    path = write_listing(folder, [(n, spelling) for n in range(N)], "jsonl")
    for split, source in opened(path).items():
        assert {drawn_split(f"{text.split()[1]}.jpg", 0) for text in said_in(source)} == {split}


@pytest.mark.parametrize("other", SPELLINGS[1:])
@pytest.mark.parametrize("kind", ["csv", "karpathy", "coco", "questions"])
def test_a_file_whose_rows_name_two_splits_is_refused_and_copies_in_two_are_said(folder, tmp_path, kind, other):
    shutil.copytree(folder, tmp_path, symlinks=False, dirs_exist_ok=True)
    rows = [("3.jpg", "train"), ("5.jpg", "val"), (other.format(3), "dev")]
    path = tmp_path / "photos.csv"
    if kind == "karpathy":
        path = tmp_path / "dataset.json"
        images = [{"filename": name, "split": split, "sentences": [{"raw": "x"}]} for name, split in rows]
        path.write_text(json.dumps({"images": images}))
    elif kind == "coco":
        path = tmp_path / "captions.json"
        images = [{"id": i, "file_name": name, "split": split} for i, (name, split) in enumerate(rows)]
        path.write_text(json.dumps({"images": images, "annotations": [{"image_id": i, "caption": "x"} for i in range(3)]}))  # fmt: skip
    else:
        what = "caption" if kind == "csv" else "question,answer"
        text = "x" if kind == "csv" else "what?,x"
        path.write_text(f"image,{what},split\n" + "".join(f"{name},{text},{split}\n" for name, split in rows))
    places = ["line 4", "line 2"] if path.suffix == ".csv" else ["images[2]", "images[0]"]
    read = open_questions if kind == "questions" else open_captions
    for split in ("train", "val"):
        if other.startswith(
            ("copy", "link")
        ):  # files of their own, which a published split may well have: said, not refused
            said = read(str(path), split).division  # type: ignore[attr-defined]
            assert "train 1, val 2, test 0; WARNING: 1 images are in two splits as copies ('3.jpg' of train is" in said
            continue
        with pytest.raises(DataError) as caught:
            read(str(path), split)
        for part in (f"{path}, {places[0]}: ", "is in split val", "in train as '3.jpg'", places[1]):
            assert part in str(caught.value)


def test_one_split_can_be_opened_where_the_pictures_of_another_are_not_there(tmp_path):
    write_pictures(tmp_path, 2)
    (tmp_path / "photos.csv").write_text("image,caption,split\n000.jpg,a,val\ngone.jpg,b,train\n../x.jpg,c,test\n")
    assert said_in(open_captions(str(tmp_path), "val")) == ["a"]
    with pytest.raises(DataError, match=r"line 3: image 'gone\.jpg' is missing"):
        open_captions(str(tmp_path), "train")


@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=40))
@reuse
def test_tars_with_a_sample_for_each_caption_are_divided_by_picture(tmp_path, pictures):
    for shard in range(2):
        with tarfile.open(tmp_path / f"cc-{shard}.tar", "w") as tar:
            for at, n in list(enumerate(pictures))[shard::2]:
                for suffix, data in (("jpg", picture_bytes(n)), ("txt", f"{at} {n}".encode())):
                    info = tarfile.TarInfo(f"{at:04d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    sources = opened(tmp_path / "cc-*.tar")
    found = {split: said_in(source) for split, source in sources.items()}
    assert sorted(text for said in found.values() for text in said) == sorted(
        f"{at} {n}" for at, n in enumerate(pictures)
    )
    assert sum(len({text.split()[1] for text in said}) for said in found.values()) == len(set(pictures))
    counts = {split: len({text.split()[1] for text in found.get(split, [])}) for split in SPLITS}
    told = ", ".join(f"{split} {n}" for split, n in counts.items())
    assert {s.division for s in sources.values()} == {f"cc-*.tar: divided by image, seed 0: {told}"}  # type: ignore[attr-defined]
    for source in sources.values():
        shown = [text.split()[1] for text in said_in(source)]
        assert list(source.pictures()) == [shown.index(n) for n in shown]  # type: ignore[attr-defined]
