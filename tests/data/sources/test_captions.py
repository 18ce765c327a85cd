from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.config.data import USUAL_LAYOUT, Columns, DataLayout
from diptych.data.sources.base import BadSample, DataError
from diptych.data.sources.captions import CaptionedFiles, open_captions
from diptych.data.sources.splits import drawn_split, named_split
from tests.data.tiny_data import image_bytes, write_images, write_karpathy

reuse = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def write_table(folder: Path, text: str, name: str = "train.csv") -> Path:
    write_images(folder, 3)
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder / name


def assert_data_error(spec: Path, *parts: str, split: str = "train", layout: DataLayout = USUAL_LAYOUT) -> None:
    """Opening raises one line that contains every part."""
    with pytest.raises(DataError) as caught:
        open_captions(str(spec), split, layout)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("name", "mark", "right"),
    [("train.csv", ";", "','"), ("train.csv", "\t", "','"), ("train.csv", "|", "','"), ("train.tsv", ",", "'\\t'")],
)
def test_an_unexpected_separator_is_named(name: str, mark: str, right: str, tmp_path: Path):
    path = write_table(tmp_path, f"image{mark}caption\n000.jpg{mark}a dog\n", name)
    assert_data_error(
        path, f"{path}, line 1", f"separated by {right} in {path.suffix}, got {mark!r}; save it with {right}"
    )


def test_karpathy_folder_and_file(karpathy):
    source = open_captions(str(karpathy), "train")
    assert len(source) == 12 and source.split == "train"
    assert source.captions(3)[0].startswith("picture 3") and source.image(0).size == (30, 44)
    assert source.where(2) == f"{karpathy}/dataset_tiny.json, images[2] (images/002.jpg)"
    assert len(open_captions(str(karpathy / "dataset_tiny.json"), "train")) == 12
    assert_data_error(karpathy, "no rows in split 'val'", split="val")
    assert_data_error(karpathy, "no rows in split 'val'", split="validation")
    assert_data_error(karpathy, "--split", "'holdout' is none of train (training, restval), val", split="holdout")


def test_coco_selects_the_split_and_folder_by_name(tmp_path):
    for part in ("train2014", "val2014"):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"COCO_{part}_000000000042.jpg").write_bytes(image_bytes())
        content = {
            "images": [{"id": 42, "file_name": f"COCO_{part}_000000000042.jpg"}, {"id": 7, "file_name": "nobody.jpg"}],
            "annotations": [{"image_id": 42, "caption": f"{part} {i}"} for i in range(2)],
        }
        (tmp_path / f"captions_{part}.json").write_text(json.dumps(content))
    source = open_captions(str(tmp_path), "val")
    assert len(source) == 1 and source.captions(0) == ("val2014 0", "val2014 1")
    assert "val2014/COCO" in source.where(0) and source.image(0).size == (40, 30)


def test_cocos_json_may_be_in_annotations_beside_its_images(tmp_path):
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017" / "000000000042.jpg").write_bytes(image_bytes())
    content = {
        "images": [{"id": 42, "file_name": "000000000042.jpg"}],
        "annotations": [{"image_id": 42, "caption": "x"}],
    }
    file = tmp_path / "annotations" / "captions_train2017.json"
    file.parent.mkdir()
    for name in ("captions_train2017.json", "captions_val2017.json", "instances_train2017.json"):
        (file.parent / name).write_text(json.dumps(content))
    for spec in (tmp_path, file, file.parent):
        source = open_captions(str(spec), "train")
        assert source.captions(0) == ("x",) and source.image(0).size == (40, 30)
        assert source.where(0) == f"{file}, images[0] (train2017/000000000042.jpg)"
    (tmp_path / "train2017" / "000000000042.jpg").rename(file.parent / "000000000042.jpg")
    assert open_captions(str(file), "train").where(0).endswith("(annotations/000000000042.jpg)")
    content["images"][0]["file_name"] = "../secret.jpg"
    file.write_text(json.dumps(content))
    assert_data_error(tmp_path, str(file), "images[0]", "leads outside")


def test_coco_caption_of_an_unknown_image(tmp_path):
    path = tmp_path / "captions_train.json"
    path.write_text(json.dumps({"images": [], "annotations": [{"image_id": 5, "caption": "x"}]}))
    assert_data_error(path, str(path), "image_id 5", "missing from 'images'")


@pytest.mark.parametrize("suffix,mark", [(".csv", ","), (".tsv", "\t")])
def test_tables_merge_the_rows_of_an_image(tmp_path, suffix, mark):
    rows = [("image", "caption"), ("001.jpg", "a, b"), ("000.jpg", "two"), ("001.jpg", "three")]
    text = "\n".join(mark.join(f'"{x}"' for x in row) for row in rows)
    source = open_captions(str(write_table(tmp_path, text, "train" + suffix)), "train")
    assert [source.captions(i) for i in range(len(source))] == [("a, b", "three"), ("two",)]


def test_a_json_list_of_records_is_a_table(tmp_path):
    rows = [{"image": "000.jpg", "caption": ["a", "b"], "image_id": "x"}, {"image": "001.jpg", "caption": "c"}]
    path = write_table(tmp_path, json.dumps(rows), "coco_karpathy_train.json")
    source = open_captions(str(path), "train")
    assert [source.captions(i) for i in range(len(source))] == [("a", "b"), ("c",)]
    assert source.where(1) == f"{path}, [1] (images/001.jpg)"
    path.write_text(json.dumps([rows[0], "x"]))
    assert_data_error(path, "coco_karpathy_train.json, [1]: expected a record, got a text")


def test_jsonl_with_a_split_column_and_columns_by_name(tmp_path):
    rows = [{"file": f"00{i}.jpg", "text": f"t{i}", "part": "val" if i == 1 else "train"} for i in range(3)]
    path = write_table(tmp_path, "\n".join(map(json.dumps, rows)) + "\n", "captions.jsonl")
    columns = Columns(image="file", caption="text", split="part")
    assert open_captions(str(path), "val", DataLayout(columns)).captions(0) == ("t1",)
    assert len(open_captions(str(tmp_path), "train", DataLayout(columns))) == 2


def test_a_table_without_splits_is_divided_by_image(tmp_path):
    names = write_images(tmp_path, 60)
    (tmp_path / "all.csv").write_text("image,caption\n" + "".join(f"{n},one\n{n},two\n" for n in names))
    parts = {s: open_captions(str(tmp_path), s) for s in ("train", "val", "test")}
    files = [{source.where(i) for i in range(len(source))} for source in parts.values()]
    assert sum(map(len, files)) == len(set.union(*files)) == 60
    assert len(parts["train"]) > 45 and all(parts["train"].captions(i) == ("one", "two") for i in range(45))


def test_blank_lines_before_the_header_are_ignored(tmp_path):
    source = open_captions(str(write_table(tmp_path, "\n\r\nimage,caption\n000.jpg,x\n")), "train")
    assert source.captions(0) == ("x",) and ", line 4 " in source.where(0)


@pytest.mark.slow
def test_random_splits_are_nine_to_one_and_depend_on_the_seed():
    shares = [drawn_split(f"{i}.jpg", 0) for i in range(4000)]
    assert abs(shares.count("train") / 4000 - 0.9) < 0.02 and abs(shares.count("val") / 4000 - 0.05) < 0.015
    assert shares != [drawn_split(f"{i}.jpg", 1) for i in range(4000)]


@pytest.mark.parametrize(
    "name,split",
    [
        ("captions_val2014", "val"),
        ("v2_OpenEnded_mscoco_train2014_questions", "train"),
        ("test-dev2015", "test-dev"),
        ("snli_dev", "val"),
        ("training", "train"),
        ("captions", None),
        ("captionsTrain", "train"),
        ("valCOCO2014", "val"),
        ("testset", "test"),
        ("my-trainingSet_v2", "train"),
        ("testDev2015", "test-dev"),
        ("refcoco_testA", "testA"),
        ("dataset", None),
        ("retrain", None),
        ("latest", None),
    ],
)
def test_splits_in_file_names(name, split):
    assert named_split(Path(name + ".json")) == split


def test_a_wrong_column_suggests_the_nearest(tmp_path):
    path = write_table(tmp_path, "image,captoin\n000.jpg,hello\n")
    assert_data_error(path, f"{path}, line 2", "no 'caption'", "did you mean captoin?")


def test_a_missing_image_names_file_row_and_nearest(tmp_path):
    path = write_table(tmp_path, "image,caption\n000.jpg,a\n01.jpg,b\n")
    assert_data_error(path, f"{path}, line 3", "'01.jpg' is missing", "did you mean 001.jpg?")


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg", "..\\secret.jpg", "x\0.jpg", ""]
)
def test_paths_outside_the_folder(tmp_path, name):
    inside = tmp_path / "inside"
    path = write_table(inside, json.dumps({"image": name, "caption": "a"}), "train.jsonl")
    (tmp_path / "secret.jpg").write_bytes(image_bytes())
    assert_data_error(path, f"{path}, line 1")


@pytest.mark.parametrize("folder", [False, True])
def test_links_out_of_the_folder_are_followed_and_named(tmp_path, folder):
    inside = tmp_path / "inside"
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.jpg").write_bytes(image_bytes())
    path = write_table(inside, f"image,caption\n{'linked/' if folder else ''}x.jpg,a\n")
    if folder:
        os.symlink(tmp_path / "outside", inside / "linked")
    else:
        os.symlink(tmp_path / "outside" / "x.jpg", inside / "x.jpg")
    source = open_captions(str(path), "train")
    assert source.image(0).mode == "RGB"
    name = "linked/x.jpg" if folder else "x.jpg"
    said = f"1 images are links out of {inside} ({name} is {tmp_path / 'outside' / 'x.jpg'})"
    assert isinstance(source, CaptionedFiles) and said in source.division


def test_links_within_the_folder_are_followed(tmp_path):
    path = write_table(tmp_path, "image,caption\nalias.jpg,a\n")
    os.symlink(tmp_path / "images" / "000.jpg", tmp_path / "alias.jpg")
    assert open_captions(str(path), "train").image(0).size == (30, 44)


def test_json_that_does_not_parse_names_the_line(karpathy):
    path = karpathy / "dataset_tiny.json"
    path.write_text('{"images": [\n {"filename": "a.jpg",\n  oops}\n]}')
    assert_data_error(karpathy, f"{path}, line 3, column 3", "not JSON")
    path.write_text("[" * 100_000)
    assert_data_error(karpathy, str(path), "JSON")


def test_a_broken_line_of_jsonl_names_its_own_line(tmp_path):
    good = json.dumps({"image": "000.jpg", "caption": "a"})
    path = write_table(tmp_path, f"{good}\n{good}\n{{nope\n", "train.jsonl")
    assert_data_error(path, f"{path}, line 3")


def test_broken_utf8_names_the_line(tmp_path):
    path = write_table(tmp_path, "")
    path.write_bytes(b"image,caption\n000.jpg,fine\n001.jpg,caf\xe9\n")
    assert_data_error(path, f"{path}, line 3", "0xe9", "UTF-8")


@pytest.mark.parametrize(
    "text,part",
    [
        ("image,caption\n000.jpg,a,b\n", "expected 2 fields, got 3"),
        ("image,image\n000.jpg,a\n", "two columns have the same name"),
        ('image,caption\n000.jpg,"a\n', "unexpected end"),
        ("", "the file is empty: no rows in split"),
        ("image,caption\n", "no rows in split"),
    ],
)
def test_malformed_tables(tmp_path, text, part):
    path = write_table(tmp_path, text)
    assert_data_error(path, str(path), part)


def test_karpathy_keys_of_the_wrong_kind(karpathy):
    path = karpathy / "dataset_tiny.json"
    content = json.loads(path.read_text())
    content["images"][4]["sentences"][1] = {"row": "typo"}
    path.write_text(json.dumps(content))
    assert_data_error(karpathy, "images[4], sentences[1]", "no 'raw'", "did you mean row?")
    content["images"][4]["sentences"] = "text"
    path.write_text(json.dumps(content))
    assert_data_error(karpathy, "images[4], 'sentences'", "expected a list, got a text")


def test_no_folder_no_captions_or_too_many(karpathy, tmp_path_factory):
    assert_data_error(karpathy / "nowhere", "no such file or folder")
    assert_data_error(tmp_path_factory.mktemp("empty"), "no file with captions of train")
    assert_data_error(karpathy / "images" / "000.jpg", ".jpg is none of")
    (karpathy / "dataset_other.json").write_text("{}")
    assert_data_error(karpathy, "dataset_other.json, dataset_tiny.json")


def test_bad_files_are_bad_samples_not_errors(karpathy):
    source = open_captions(str(karpathy), "train")
    (karpathy / "images" / "001.jpg").write_bytes(image_bytes()[:300])
    (karpathy / "images" / "002.jpg").unlink()
    with pytest.raises(BadSample, match=r"001\.jpg: not a readable image"):
        source.image(1)
    with pytest.raises(BadSample, match=r"002\.jpg: cannot be read"):
        source.image(2)


words = st.text(st.characters(codec="utf-8", exclude_characters="\r\n[{("), max_size=12).filter(
    lambda word: word.strip() not in ("nan", "NaN", "<NA>", "None") and word.strip()[:2] not in ("b'", 'b"', "u'", 'u"')
)  # missing values and printed Python values are errors: test_cells.py


@given(st.lists(st.tuples(st.sampled_from(["000.jpg", "001.jpg", "002.jpg"]), words), min_size=1, max_size=12))
@reuse
@pytest.mark.slow
def test_any_captions_survive_a_csv(tmp_path, rows):
    path = write_table(tmp_path, "")
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    source = open_captions(str(path), "train")
    read = {source.where(i).split("(")[-1]: source.captions(i) for i in range(len(source))}
    assert read == {f"images/{n})": tuple(c for m, c in rows if m == n) for n in {n for n, _ in rows}}


@given(st.text(st.characters(codec="utf-8"), max_size=80), st.sampled_from(["train.csv", "train.tsv", "train.jsonl"]))
@reuse
def test_any_table_opens_or_raises_with_its_name(tmp_path, text, name):
    assert_data_error(write_table(tmp_path, text, name), name)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
@reuse
@pytest.mark.slow
def test_any_json_opens_or_raises_with_its_name(tmp_path, data):
    content = json.loads(write_karpathy(tmp_path, 2, 1).read_text())
    kind = data.draw(st.sampled_from(["top", "images", "image", "filename", "split", "sentences", "sentence", "raw"]))
    value = data.draw(json_values)
    image = content["images"][0]
    if kind == "top":
        content = value
    elif kind == "images":
        content["images"] = value
    elif kind == "image":
        content["images"][0] = value
    elif kind == "sentence":
        image["sentences"][0] = value
    elif kind == "raw":
        image["sentences"][0]["raw"] = value
    else:
        image[kind] = value
    (tmp_path / "dataset_tiny.json").write_text(json.dumps(content))
    try:
        source = open_captions(str(tmp_path / "dataset_tiny.json"), "train")
    except DataError as error:
        assert "dataset_tiny.json" in str(error)
    else:
        assert all(isinstance(c, str) for i in range(len(source)) for c in source.captions(i))
