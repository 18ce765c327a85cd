"""Readers of referring expressions: tables, REFER's files, the built-in world; boxes in pixels of the upright image."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from diptych.config.data import Columns, DataLayout
from diptych.data.images.decode import SWAPS_SIDES, decode, upright_size
from diptych.data.sources.base import BadSample, DataError, Grounded, NoSplit
from diptych.data.sources.grounding import open_expressions
from diptych.data.sources.photos import open_photos
from diptych.data.synthetic import Scenes
from diptych.data.synthetic.language import expressions
from diptych.data.synthetic.world import OPPOSITE, Phrase
from tests.data.tiny_data import image_bytes, write_images


def write_rows(folder: Path, rows: list[dict[str, Any]], name: str = "phrases.jsonl") -> Path:
    write_images(folder, 4)
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_flickr30k_entities_as_json_lines(tmp_path: Path):
    rows = [
        {"image": "000.jpg", "split": "train", "phrase": "a dog", "kinds": ["animals"], "boxes": [[1, 2, 11.5, 12]]},
        {"image": "000.jpg", "split": "train", "phrase": "two dogs", "boxes": [[1, 2, 11.5, 12], [5, 1, 20, 8]]},
        {"image": "001.jpg", "split": "val", "phrase": "snow", "kinds": [], "boxes": [[0, 0, 9, 9]]},
    ]
    source = open_expressions(str(write_rows(tmp_path, rows)), "train")
    assert isinstance(source, Grounded) and len(source) == 2
    first, both = source.expression(0), source.expression(1)
    assert (first.phrase, first.box, first.kinds) == ("a dog", (1, 2, 11.5, 12), ("animals",))
    assert both.box == (1, 1, 20, 12) and both.kinds == () and both.image == first.image == 0
    assert source.objects(0) == (first.box, both.box) and source.size(0) == source.image(0).size == (30, 44)
    assert source.where(1) == f"{tmp_path / 'phrases.jsonl'}, line 2 (images/000.jpg)"
    assert len(open_expressions(str(tmp_path), "val")) == 1
    with pytest.raises(NoSplit):
        open_expressions(str(tmp_path), "test")


@pytest.mark.parametrize(
    "header,row,columns",
    [
        ("image,phrase,box,split", "000.jpg,a dog,1 2 11.5 12,val", ""),
        ("image,phrase,box,split", '000.jpg,a dog,"1, 2, 11.5, 12",val', ""),
        ("image,phrase,box,split", '000.jpg,a dog,"[1, 2, 11.5, 12]",val', ""),
        ("image,phrase,x1,y1,x2,y2,split", "000.jpg,a dog,1,2,11.5,12,val", ""),
        ("file,text,l,t,r,b,split", "000.jpg,a dog,1,2,11.5,12,val", "image=file,phrase=text,box=l t r b"),
        ("Image,Phrase,bbox,Split", "000.jpg,a dog,1 2 11.5 12,val", "box=bbox"),
    ],
)
def test_a_table_of_ones_own(header: str, row: str, columns: str, tmp_path: Path):
    write_images(tmp_path, 1)
    (tmp_path / "phrases.csv").write_text(f"{header}\n{row}\n")
    source = open_expressions(str(tmp_path / "phrases.csv"), "val", DataLayout(Columns.parse(columns)))
    assert (source.expression(0).phrase, source.expression(0).box) == ("a dog", (1, 2, 11.5, 12))


@pytest.mark.parametrize("box", ["1 2 3", "a b c d", [1, 2, 3], None, [[1, 2, 3]], True, "", [True, 1, 2, 3], {"x": 1}])
def test_what_is_no_box_is_an_error_of_the_row(box: Any, tmp_path: Path):
    path = write_rows(tmp_path, [{"image": "000.jpg", "split": "val", "phrase": "a dog", "box": box}])
    with pytest.raises(DataError, match=r"line 1, 'box'.*expected a box, the four numbers"):
        open_expressions(str(path), "val")


def test_missing_columns_and_images_are_named(tmp_path: Path):
    path = write_rows(tmp_path, [{"image": "000.jpg", "split": "val", "phrase": "a dog", "bbox": [1, 2, 3, 4]}])
    with pytest.raises(DataError, match=r"line 1: no 'box'.*--columns box=bbox"):
        open_expressions(str(path), "val")
    path.write_text('{"image": "009.jpg", "split": "val", "phrase": "a dog", "box": [1, 2, 3, 4]}')
    with pytest.raises(DataError, match=r"line 1: image '009.jpg' is missing"):
        open_expressions(str(path), "val")
    with pytest.raises(DataError, match="no file with referring expressions of val; expected refs"):
        path.write_text('{"image": "000.jpg", "caption": "a dog"}')
        open_expressions(str(tmp_path), "val")


REFERENCES = [
    ("train", 581857, 1, ["the lady", "woman in blue"]),
    ("testA", 7, 3, ["man"]),
    ("train", 581857, 2, ["the dog"]),
]


def write_refer(folder: Path, protocol: int = 2, images: str = "train2014") -> Path:
    """Writes REFER's files of two images, and the images; the path of the references."""
    (folder / images).mkdir(parents=True)
    names = {number: f"COCO_train2014_{number:012d}.jpg" for number in (581857, 7)}
    for name in names.values():
        (folder / images / name).write_bytes(image_bytes(1))
    references, sentences = [], iter(range(100))
    for i, (split, image, note, texts) in enumerate(REFERENCES):
        of_ref = [{"sent_id": next(sentences), "raw": text, "sent": "", "tokens": text.split()} for text in texts]
        references.append(
            {
                "ref_id": i, "ann_id": note, "image_id": image, "split": split, "category_id": 1, "sentences": of_ref,
                "sent_ids": [sentence["sent_id"] for sentence in of_ref],
                "file_name": f"COCO_train2014_{image:012d}_{i}.jpg",
            }
        )  # fmt: skip
    notes = [(1, 581857, [1, 2, 10, 20]), (2, 581857, [5, 5, 4.5, 4]), (3, 7, [0, 0, 3, 3]), (4, 7, [9, 9, 5, 5])]
    instances = {
        "images": [{"id": number, "file_name": name} for number, name in names.items()],
        "annotations": [{"id": id, "image_id": image, "bbox": box} for id, image, box in notes],
    }
    data = folder / "refcoco+"
    data.mkdir()
    (data / "instances.json").write_text(json.dumps(instances))
    (data / "refs(unc).p").write_bytes(pickle.dumps(references, protocol))
    return data / "refs(unc).p"


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("images", ["train2014", "refcoco+2/../images/train2014", "refcoco+_images"])
def test_refers_files(protocol: int, images: str, tmp_path: Path):
    path = write_refer(tmp_path, protocol, images)
    for spec in (path, path.parent):
        source = open_expressions(str(spec), "train")
        rows = [source.expression(i) for i in range(len(source))]
        assert [row.phrase for row in rows] == ["the lady", "woman in blue", "the dog"]
        assert [row.box for row in rows] == [(1, 2, 11, 22), (1, 2, 11, 22), (5, 5, 9.5, 9)]
        assert [row.id for row in rows] == [0, 1, 3] and {row.image for row in rows} == {0}
        assert source.image(0).size == (40, 30) and "refs(unc).p, [2]" in source.where(2)
    test = open_expressions(str(path), "testA")
    assert len(test) == 1 and test.objects(0) == ((0, 0, 3, 3), (9, 9, 14, 14))
    with pytest.raises(NoSplit, match=r"no references in split 'val' \(train 2, val 0, test 0, testA 1\)"):
        open_expressions(str(path), "val")


def test_refers_images_may_be_elsewhere(tmp_path: Path):
    path = write_refer(tmp_path / "data")
    (tmp_path / "data" / "train2014").rename(tmp_path / "coco")
    with pytest.raises(DataError, match=r"image 581857: image 'COCO_train2014_000000581857.jpg' is missing"):
        open_expressions(str(path), "train")
    source = open_expressions(str(path), "train", DataLayout(images_root=str(tmp_path / "coco")))
    assert source.image(0).size == (40, 30)


class Runs:
    """Its pickle would create a file."""

    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_a_pickle_that_runs_code_or_lacks_parts_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = write_refer(tmp_path)
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps([*content, Runs()]))
    with pytest.raises(DataError, match="could run code"):
        open_expressions(str(path), "train")
    assert not Path("touched").exists()
    for wrong, message in (
        ({"a": 1}, "expected a list of references"),
        ([{**content[0], "ann_id": 99}], r"\[0\]: instances.json has no image 581857 with an annotation 99"),
        ([{**content[0], "sentences": [{"raw": "x"}]}], r"\[0\], sentences\[0\]: no 'sent_id'"),
        ([{**content[0], "split": "testC"}], r"\[0\]: split 'testC' is none of"),
    ):
        path.write_bytes(pickle.dumps(wrong))
        with pytest.raises(DataError, match=message):
            open_expressions(str(path), "train")
    path.with_name("instances.json").unlink()
    with pytest.raises(DataError, match=r"instances.json: missing"):
        open_expressions(str(path), "train")


def test_several_files_of_references_must_be_named(tmp_path: Path):
    path = write_refer(tmp_path)
    path.with_name("refs(google).p").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"refs\(google\).p, refs\(unc\).p may all contain"):
        open_expressions(str(path.parent), "train")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_of_the_upright_image(orientation: int, tmp_path: Path):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    data = image_bytes(0, (40, 30), exif=exif)
    assert upright_size(data, "a.jpg") == decode(data, "a.jpg").size
    assert upright_size(data, "a.jpg") == ((30, 40) if orientation in SWAPS_SIDES else (40, 30))
    (tmp_path / "a.jpg").write_bytes(data)
    assert open_photos([tmp_path / "a.jpg"]).size(0) == decode(data, "a.jpg").size
    (tmp_path / "rows.jsonl").write_text('{"image": "a.jpg", "split": "val", "phrase": "x", "box": [0, 0, 9, 9]}')
    source = open_expressions(str(tmp_path / "rows.jsonl"), "val", min_side=8)
    assert source.size(0) == decode(data, "a.jpg").size != source.image(0).size or min(source.size(0)) < 16


def test_an_unreadable_image_has_no_size(tmp_path: Path):
    path = write_rows(tmp_path, [{"image": "000.jpg", "split": "val", "phrase": "a dog", "box": [1, 2, 3, 4]}])
    source = open_expressions(str(path), "val")
    (tmp_path / "images/000.jpg").write_bytes(b"broken")
    with pytest.raises(BadSample, match="not a readable image"):
        source.size(0)


def test_every_expression_of_a_scene_fits_one_object_only():
    """Parsed again by a reader of its own: the first phrase's words, a relation, and the second phrase's."""
    relations = {
        "left": "left",
        "right": "right",
        "above": "above",
        "higher": "above",
        "below": "below",
        "lower": "below",
    }
    scenes, related = Scenes("val", 150), 0
    for index in range(len(scenes)):
        scene = scenes.scene(index)
        for reference in expressions(scene):
            words = reference.text.split()[1:]
            at = next((i for i, word in enumerate(words) if word in relations), None)
            before = words[:at] if at is None or words[at - 2 : at] != ["to", "the"] else words[: at - 2]
            fitting = [i for i, thing in enumerate(scene.things) if described(before).fits(thing)]
            if at is not None:
                (other,) = (i for i, t in enumerate(scene.things) if described(words[at + 1 :]).fits(t))
                relation = relations[words[at]]
                unclear = [i for i in fitting if i != other and not scene.holds(i, OPPOSITE[relation], other)]
                assert unclear == [i for i in fitting if i != other and scene.holds(i, relation, other)]
                fitting, related = unclear, related + 1
            assert fitting == [reference.thing], (scene, reference)
    assert related > 100


def described(words: list[str]) -> Phrase:
    from diptych.data.synthetic.shapes import KINDS
    from diptych.data.synthetic.world import COLORS, MATERIALS, SIZES

    def one(options: Any) -> str | None:
        return next((word for word in words if word in options), None)

    return Phrase(one(KINDS), one(COLORS), one(MATERIALS), one(SIZES))
