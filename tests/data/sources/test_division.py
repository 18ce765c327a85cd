"""A data set is divided into splits by image, whatever the names and number of its rows."""

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
from tests.data.tiny_data import image_bytes, write_images

N = 12
SPELLINGS = ("{}.jpg", "./{}.jpg", "images/{}.jpg", "images//{}.jpg", "copy-{}.jpg", "link-{}.jpg", "./images/./{}.jpg")
reuse = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
listings = st.lists(st.tuples(st.integers(0, N - 1), st.sampled_from(SPELLINGS)), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images, each under its name, as a copy and as a link."""
    folder = tmp_path_factory.mktemp("images")
    for name in write_images(folder, N):
        target = folder / "images" / f"{int(name[:3])}.jpg"
        (folder / "images" / name).rename(target)
        shutil.copy(target, folder / f"copy-{target.name}")
        os.symlink(target, folder / f"link-{target.name}")
    return folder


def opened(spec: Path | str) -> dict[str, Captioned]:
    """Each split that is not empty."""
    sources = {}
    for split in SPLITS:
        try:
            sources[split] = open_captions(str(spec), split)
        except NoSplit:
            continue
    return sources


def captions_of(source: Captioned) -> list[str]:
    return [text for i in range(len(source)) for text in source.captions(i)]


def write_listing(folder: Path, listing: list[tuple[int, str]], kind: str) -> Path:
    """One caption per row, which contains the row's number and the image's."""
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
@pytest.mark.slow
def test_every_row_and_every_image_is_in_one_split(folder, listing, kind, random):
    captions = {split: captions_of(source) for split, source in opened(write_listing(folder, listing, kind)).items()}
    assert sorted(text for texts in captions.values() for text in texts) == sorted(
        f"{at} {n}" for at, (n, _) in enumerate(listing)
    )
    images = {split: {text.split()[1] for text in texts} for split, texts in captions.items()}
    assert sum(map(len, images.values())) == len({n for n, _ in listing})

    random.shuffle(listing)
    again = {split: captions_of(source) for split, source in opened(write_listing(folder, listing, kind)).items()}
    assert {split: {text.split()[1] for text in texts} for split, texts in again.items()} == images, "in any order"


@given(listings)
@reuse
def test_copies_of_an_image_are_listed_and_spellings_of_a_path_are_merged(folder, listing):
    for source in opened(write_listing(folder, listing, "jsonl")).values():
        numbers = [source.captions(i)[0].split()[1] for i in range(len(source))]
        assert list(source.pictures()) == [numbers.index(n) for n in numbers]  # type: ignore[attr-defined]
        files = [source.where(i).split("(")[-1] for i in range(len(source))]
        assert len(set(files)) == len(files)


def test_a_file_of_one_split_counts_an_image_once_for_all_spellings_of_its_path(folder):
    rows = [{"image": spelling.format(3), "caption": "x"} for spelling in ("{}.jpg", "./{}.jpg", "images/{}.jpg")]
    (folder / "val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_captions(str(folder / "val.jsonl"), "val")
    assert len(source) == 1 and source.captions(0) == ("x",) * 3
    assert source.division == "val.jsonl: named for val, counted in files: train 0, val 1, test 0"  # type: ignore[attr-defined]


def test_the_split_of_a_plain_name_has_not_changed(folder):
    path = write_listing(folder, [(n, "{}.jpg") for n in range(N)], "jsonl")
    for split, source in opened(path).items():
        assert {drawn_split(f"{text.split()[1]}.jpg", 0) for text in captions_of(source)} == {split}


@pytest.mark.parametrize("spelling", ["./{}.jpg", ".//{}.jpg", "././{}.jpg"])
def test_other_spellings_of_a_path_are_drawn_as_the_plain_name(folder: Path, spelling: str):
    path = write_listing(folder, [(n, spelling) for n in range(N)], "jsonl")
    for split, source in opened(path).items():
        assert {drawn_split(f"{text.split()[1]}.jpg", 0) for text in captions_of(source)} == {split}


@pytest.mark.parametrize("other", SPELLINGS[1:])
@pytest.mark.parametrize("kind", ["csv", "karpathy", "coco", "questions"])
def test_an_image_in_two_splits_raises_and_copies_in_two_splits_warn(folder, tmp_path, kind, other):
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
    locations = ["line 4", "line 2"] if path.suffix == ".csv" else ["images[2]", "images[0]"]
    read = open_questions if kind == "questions" else open_captions
    for split in ("train", "val"):
        if other.startswith(
            ("copy", "link")
        ):  # separate files, which a published split may contain: a warning, not an error
            division = read(str(path), split).division  # type: ignore[attr-defined]
            assert (
                "train 1, val 2, test 0; WARNING: 1 images are in two splits as copies ('3.jpg' of train is" in division
            )
            continue
        with pytest.raises(DataError) as caught:
            read(str(path), split)
        for part in (f"{path}, {locations[0]}: ", "is in split val", "in train as '3.jpg'", locations[1]):
            assert part in str(caught.value)


def test_a_split_opens_if_images_of_other_splits_are_missing(tmp_path):
    write_images(tmp_path, 2)
    (tmp_path / "photos.csv").write_text("image,caption,split\n000.jpg,a,val\ngone.jpg,b,train\n../x.jpg,c,test\n")
    assert captions_of(open_captions(str(tmp_path), "val")) == ["a"]
    with pytest.raises(DataError, match=r"line 3: image 'gone\.jpg' is missing"):
        open_captions(str(tmp_path), "train")


@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=40))
@reuse
@pytest.mark.slow
def test_tars_with_a_sample_per_caption_are_divided_by_image(tmp_path, images):
    for shard in range(2):
        with tarfile.open(tmp_path / f"cc-{shard}.tar", "w") as tar:
            for at, n in list(enumerate(images))[shard::2]:
                for suffix, data in (("jpg", image_bytes(n)), ("txt", f"{at} {n}".encode())):
                    info = tarfile.TarInfo(f"{at:04d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    sources = opened(tmp_path / "cc-*.tar")
    captions = {split: captions_of(source) for split, source in sources.items()}
    assert sorted(text for texts in captions.values() for text in texts) == sorted(
        f"{at} {n}" for at, n in enumerate(images)
    )
    assert sum(len({text.split()[1] for text in texts}) for texts in captions.values()) == len(set(images))
    counts = {split: len({text.split()[1] for text in captions.get(split, [])}) for split in SPLITS}
    sizes = ", ".join(f"{split} {n}" for split, n in counts.items())
    assert {s.division for s in sources.values()} == {f"cc-*.tar: divided by image, seed 0: {sizes}"}  # type: ignore[attr-defined]
    for source in sources.values():
        numbers = [text.split()[1] for text in captions_of(source)]
        assert list(source.pictures()) == [numbers.index(n) for n in numbers]  # type: ignore[attr-defined]
