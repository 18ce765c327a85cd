"""One table of words for splits, used for rows and file names: no word is ignored, and no row is in two splits."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.config.data import Streaming
from diptych.data.sources.base import DataError, NoSplit
from diptych.data.sources.captions import open_captions
from diptych.data.sources.splits import SEVERAL, SPLITS, file_split, known_split, named_split, requested_split, split_of
from diptych.data.sources.vqa import open_questions
from diptych.data.webdataset.streamed_shards import Stream
from tests.data.tiny_data import image_bytes, write_images

WORDS = {
    "train": ["train", "training", "restval"],
    "val": ["val", "valid", "validation", "dev", "eval", "minival"],
    "test": ["test", "testing"],
}
KNOWN = [(word, split) for split, words in WORDS.items() for word in words]
blanks = st.text(" \t_-.", max_size=3)
reuse = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(st.sampled_from(KNOWN), blanks, blanks, st.data())
def test_a_word_means_its_split_in_any_case_with_blanks_around_it(pair, before, after, data):
    word, split = pair
    cased = "".join(data.draw(st.sampled_from([c.lower(), c.upper()])) for c in word)
    year = data.draw(st.sampled_from(["", "2014", " 2017"]))
    assert split_of(before + cased + year + after, "row 1") == split == requested_split(cased, "photos.csv")


@pytest.mark.parametrize(
    "word", ["trainval", "TrainVal2014", "train+val", "train2014+val2014", "train-val", "train and val", "dev_test"]
)
def test_several_splits_at_once_raise_with_advice(word):
    assert known_split(word) == SEVERAL
    with pytest.raises(DataError, match=r"t\.csv, line 3: .* more than one split; name one of"):
        split_of(word, "t.csv, line 3")


@pytest.mark.parametrize(
    "word", ["holdout", "evaluation", "contest", "latest", "traín", "tr", "val5000", "0", "x train"]
)
def test_any_other_word_raises_with_the_known_ones(word):
    with pytest.raises(DataError, match=r"row 7: split .* is none of train \(training, restval\), val .*; correct it"):
        split_of(word, "row 7")


@pytest.mark.parametrize("word", ["", " ", "\t", "--"])
def test_an_empty_split_raises(word):
    with pytest.raises(DataError, match=r"row 7: the split is empty|row 7: split '--' is none of"):
        split_of(word, "row 7")


@pytest.mark.parametrize("word,own", [("testA", "testA"), ("TESTB", "testB"), ("test-dev", "test-dev"), ("test_std2015", "test-std")])  # fmt: skip
def test_a_data_sets_own_splits_are_accepted_by_its_reader_only(word, own):
    assert split_of(word, "row", own=[own]) == own
    with pytest.raises(DataError, match="does not exist in this format"):
        split_of(word, "row")


@pytest.mark.parametrize(
    "name,split",
    [
        ("captions_VAL2014.json", "val"), ("valid.csv", "val"), ("snli_1.0_dev.jsonl", "val"), ("Testing.tsv", "test"),
        ("my.photos.validation.csv", "val"), ("cc3m-train-0012.tar", "train"), ("train0.tar", "train"),
        ("x-testA.json", "testA"), ("test-dev2015.json", "test-dev"), ("train2014+val2014.json", SEVERAL),
        ("train_test.csv", SEVERAL), ("trainval2014.json", SEVERAL), ("contest.csv", None), ("latest.csv", None),
        ("evaluation.csv", None), ("retrain.csv", None), ("photos.csv", None), ("devices.csv", None),
    ],
)  # fmt: skip
def test_words_in_file_names(name, split):
    assert named_split(Path(name)) == split
    if split in (*SPLITS, None):
        assert file_split(Path(name)) == split
    else:
        with pytest.raises(DataError, match=name.replace("+", r"\+")):
            file_split(Path(name))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
        return
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writeheader()
        table.writerows(rows)


@given(st.lists(st.sampled_from([w for w, _ in KNOWN] + [" Val ", "TRAIN", "holdout", "trainval", "testA", ""]), min_size=1, max_size=6), st.sampled_from([".csv", ".tsv", ".jsonl", ".json"]))  # fmt: skip
@reuse
@pytest.mark.slow
def test_every_row_is_in_one_split_or_its_file_raises(tmp_path, words, suffix):
    names = write_images(tmp_path, 6)
    path = tmp_path / f"photos{suffix}"
    if suffix == ".json":
        path = tmp_path / "dataset.json"
        rows = [{"filename": n, "split": w, "sentences": [{"raw": n}]} for n, w in zip(names, words, strict=False)]
        path.write_text(json.dumps({"images": rows}))
    else:
        write_rows(path, [{"image": n, "caption": n, "split": w} for n, w in zip(names, words, strict=False)])
    wrong = [w for w in words if known_split(w) not in SPLITS]
    opened: list[str] = []
    for split in SPLITS:
        try:
            source = open_captions(str(path), split)
        except NoSplit as error:
            assert not wrong and f"no rows in split {split!r}" in str(error)
        except DataError as error:
            at = words.index(wrong[0])
            location = f"images[{at}]" if suffix == ".json" else f"line {at + 1 + (suffix != '.jsonl')}"
            assert f"{path}, {location}: " in str(error)
        else:
            assert not wrong
            own = [source.captions(i)[0] for i in range(len(source))]
            assert {known_split(words[names.index(name)]) for name in own} == {split}
            opened += own
    assert wrong or sorted(opened) == names[: len(words)]


@pytest.mark.parametrize("heading", ["split", "Split", " SPLIT "])
def test_a_split_column_is_recognised_in_any_case(tmp_path, heading):
    names = write_images(tmp_path, 3)
    rows = [{"image": n, "caption": n, heading: s} for n, s in zip(names, ["dev", "train", "dev "], strict=True)]
    write_rows(tmp_path / "photos.csv", rows)
    source = open_captions(str(tmp_path), "val")
    assert [source.captions(i) for i in range(len(source))] == [(names[0],), (names[2],)]


@pytest.mark.parametrize("heading", ["set", "Subset", "partition", "fold", "split_name", "image_split"])
@pytest.mark.parametrize(
    "name", ["photos.csv", "photos.jsonl", "captions_photos.json", "x_questions.json", "train.csv"]
)
def test_a_split_column_of_another_name_raises_and_is_not_ignored(tmp_path, heading, name):
    files = write_images(tmp_path, 3)
    (tmp_path / "images" / "7.jpg").write_bytes(image_bytes(7))
    own = [{heading: word} for word in ("training", "dev", "train2014")]
    if name.startswith("captions"):
        images = [{"id": i, "file_name": n} | o for i, (n, o) in enumerate(zip(files, own, strict=True))]
        notes = [{"image_id": i, "caption": "x"} for i in range(3)]
        (tmp_path / name).write_text(json.dumps({"images": images, "annotations": notes}))
    elif name.endswith("questions.json"):
        rows = [{"question_id": i, "image_id": 7, "question": "x?"} | o for i, o in enumerate(own)]
        (tmp_path / name).write_text(json.dumps({"questions": rows}))
    else:
        rows = [
            {"image": n, "caption": "x", "question": "x?", "answer": "val"} | o for n, o in zip(files, own, strict=True)
        ]
        write_rows(tmp_path / name, rows)
    for open_them in (open_captions, open_questions):
        if name.startswith("captions") and open_them is open_questions:
            continue
        if name.endswith("questions.json") and open_them is open_captions:
            continue
        with pytest.raises(DataError, match=rf"{name}: column '{heading}' contains splits \('training'\).* rename it"):
            open_them(str(tmp_path / name), "train")


def test_a_consistent_or_additional_split_column_is_ignored(tmp_path):
    names = write_images(tmp_path, 2)
    write_rows(tmp_path / "val2014.csv", [{"image": n, "caption": "x", "set": "dev"} for n in names])
    assert len(open_captions(str(tmp_path / "val2014.csv"), "val")) == 2
    rows = [
        {"image": n, "caption": "x", "set": s, "split": "train"} for n, s in zip(names, ("train", "test"), strict=True)
    ]
    write_rows(tmp_path / "all.csv", rows)
    assert len(open_captions(str(tmp_path / "all.csv"), "train")) == 2
    write_rows(tmp_path / "all.csv", [row | {"Split": "val"} for row in rows])
    with pytest.raises(DataError, match=r"line 2: 'split' and 'Split' may both be the split column"):
        open_captions(str(tmp_path / "all.csv"), "train")


def test_if_a_row_names_a_split_every_row_must(tmp_path):
    names = write_images(tmp_path, 3)
    path = tmp_path / "photos.jsonl"
    rows = [{"image": n, "caption": n} | ({} if n == names[1] else {"split": "train"}) for n in names]
    write_rows(path, rows)
    with pytest.raises(DataError, match=r"photos\.jsonl, line 2: names no split, though other rows do"):
        open_captions(str(path), "train")
    rows[1]["split"] = None  # type: ignore[assignment]
    write_rows(path, rows)
    with pytest.raises(DataError, match=r"photos\.jsonl, line 2, 'split': expected a text, got null; correct it"):
        open_captions(str(path), "train")


def write_coco(path: Path, names: list[str]) -> None:
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    notes = [{"image_id": i, "caption": f"{k} of {name}"} for i, name in enumerate(names) for k in range(2)]
    path.write_text(json.dumps({"images": images, "annotations": notes}))


def test_a_coco_file_named_for_a_split_is_that_split_only(tmp_path):
    write_coco(tmp_path / "captions_train2014.json", write_images(tmp_path, 5))
    for spec in (tmp_path, tmp_path / "captions_train2014.json"):
        assert len(open_captions(str(spec), "training")) == 5
        with pytest.raises(NoSplit):
            open_captions(str(spec), "val")


def test_a_coco_file_named_for_no_split_is_divided(tmp_path):
    write_coco(tmp_path / "captions_holidays.json", names := write_images(tmp_path, 80))
    images = []
    for split in SPLITS:
        source = open_captions(str(tmp_path), split)
        assert source.division == "captions_holidays.json: divided by image, seed 0: train 73, val 5, test 2"  # type: ignore[attr-defined]
        images += [source.where(i).split("(")[-1] for i in range(len(source))]
    assert sorted(images) == [f"images/{name})" for name in names]


def test_a_table_beside_one_named_for_a_split_is_not_divided(tmp_path):
    """The other table may contain the same images."""
    names = write_images(tmp_path, 40)
    for name in ("train.csv", "photos.csv"):
        write_rows(tmp_path / name, [{"image": n, "caption": n} for n in names])
    assert len(open_captions(str(tmp_path), "train")) == 40
    with pytest.raises(NoSplit, match="no file with captions of val"):
        open_captions(str(tmp_path), "val")


def write_tar(path: Path, keys: list[str]) -> None:
    with tarfile.open(path, "w") as tar:
        for key in keys:
            for suffix, data in (("jpg", image_bytes(int(key))), ("txt", f"caption {key}".encode())):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    "word,split", [("validation", "val"), ("Dev", "val"), ("TRAINING", "train"), ("testing", "test")]
)
def test_the_split_of_tars_follows_from_a_word_in_their_name(tmp_path, word, split):
    write_tar(tmp_path / f"cc-{word}-000.tar", ["0", "1"])
    write_tar(tmp_path / f"cc-{'test' if split == 'val' else 'val'}-000.tar", ["2"])
    assert len(open_captions(str(tmp_path / "*.tar"), split)) == 2
    stream = Stream(str(tmp_path / "*.tar"), word, Streaming(1, 8))
    assert (stream.split, stream.shards) == (split, [tmp_path / f"cc-{word}-000.tar"])
    write_tar(tmp_path / "cc-trainval-000.tar", ["3"])
    with pytest.raises(DataError, match=r"cc-trainval-000\.tar: its name contains more than one split"):
        open_captions(str(tmp_path / "*.tar"), split)


def test_tars_named_for_a_split_and_for_none_are_not_mixed(tmp_path):
    write_tar(tmp_path / "cc-000.tar", ["0", "1"])
    write_tar(tmp_path / "cc-train-000.tar", ["2"])
    with pytest.raises(DataError, match=r"cc-000\.tar: named for no split, though cc-train-000\.tar is"):
        open_captions(str(tmp_path / "*.tar"), "val")


def write_questions(path: Path, numbers: list[int], **more: str) -> None:
    rows = [{"question_id": 10 * n + k, "image_id": n, "question": "what?"} for n in numbers for k in range(2)]
    path.write_text(json.dumps({"questions": rows, **more}))


def test_test_dev_is_another_split_than_test(tmp_path):
    write_images(tmp_path, 4)
    write_questions(tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json", [0, 1, 2])
    write_questions(tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json", [0])
    assert [len(open_questions(str(tmp_path), split)) for split in ("test", "test-dev")] == [6, 2]
    with pytest.raises(DataError, match="'testA' does not exist in this format"):
        open_questions(str(tmp_path), "testA")


def test_a_questions_file_is_divided_by_image_unless_its_subtype_names_a_split(tmp_path):
    write_images(tmp_path, 40)
    write_questions(tmp_path / "questions.json", list(range(40)))
    sources = {split: open_questions(str(tmp_path), split) for split in ("train", "val")}
    images = {split: {s.where(i).split("(")[-1] for i in range(len(s))} for split, s in sources.items()}
    assert not images["train"] & images["val"]
    assert all(len(sources[split]) == 2 * len(files) for split, files in images.items())
    write_questions(tmp_path / "questions.json", list(range(40)), data_subtype="train2014")
    assert len(open_questions(str(tmp_path), "train")) == 80
    with pytest.raises(NoSplit, match="no rows in split 'val'"):
        open_questions(str(tmp_path), "val")
