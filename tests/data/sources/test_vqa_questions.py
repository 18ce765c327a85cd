from __future__ import annotations

import json
from pathlib import Path

import pytest

from diptych.data.sources.answers import answer_list, answer_prior, soft_scores
from diptych.data.sources.base import DataError
from diptych.data.sources.vqa import open_questions
from diptych.metrics.vqa import normalise_answer
from tests.data.tiny_data import image_bytes


def write_vqa(
    folder: Path, style: str = "NYU_{:012d}.jpg", image_folder: str = "images", split: str = "val2014"
) -> Path:
    """Writes three questions about images 7 and 12, with ten answers each; the path of the questions."""
    (folder / image_folder).mkdir(parents=True, exist_ok=True)
    for number in (7, 12):
        (folder / image_folder / style.format(number)).write_bytes(image_bytes(number))
    rows = [(1, 7, "what?", "Desk"), (2, 12, "how many?", "two"), (5, 7, "where?", "desk")]
    questions = [{"question_id": id, "image_id": image, "question": text} for id, image, text, _ in rows]
    notes = [
        {
            "question_id": id,
            "image_id": image,
            "answer_type": "other",
            "answers": [{"answer": answer if i < 8 else "chair", "answer_id": i + 1} for i in range(10)],
        }
        for id, image, _, answer in rows
    ]
    path = folder / f"v2_OpenEnded_mscoco_{split}_questions.json"
    path.write_text(json.dumps({"data_subtype": split, "questions": questions}))
    (folder / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps({"annotations": notes}))
    return path


@pytest.mark.parametrize(
    "style,image_folder",
    [("NYU_{:012d}.jpg", "images"), ("COCO_val2014_{:012d}.jpg", "val2014"), ("{}.png", ""), ("{:03d}.jpeg", "images")],
)
def test_vqa_v2_resolves_images_by_number(tmp_path, style, image_folder):
    write_vqa(tmp_path, style, image_folder)
    source = open_questions(str(tmp_path), "val")
    assert len(source) == 3
    first, last = source.question(0), source.question(2)
    assert (first.id, first.text, first.kind) == (1, "what?", "other") and first.image == last.image == 0
    assert first.answers == ("Desk",) * 8 + ("chair",) * 2
    assert source.image(first.image).size == (40, 30)
    assert "questions[2]" in source.where(2) and style.format(7) in source.where(2)


@pytest.mark.parametrize("image_folder", ["val2014", "images", "Images/mscoco/val2014", "Questions"])
@pytest.mark.parametrize("folders", [("Questions", "Annotations"), ("annotations", "annotations")])
def test_vqa_v2s_json_may_be_in_folders_beside_its_images(tmp_path, folders, image_folder):
    file = write_vqa(tmp_path, "COCO_val2014_{:012d}.jpg", image_folder)
    notes = next(tmp_path.glob("*annotations*.json"))
    for path, folder in zip((file, notes), folders, strict=True):
        (tmp_path / folder).mkdir(exist_ok=True)
        path.rename(tmp_path / folder / path.name)
    if image_folder == "Questions" != folders[0]:
        (tmp_path / image_folder).rename(tmp_path / "images")
    for spec in (tmp_path, tmp_path / folders[0], tmp_path / folders[0] / file.name):
        source = open_questions(str(spec), "val")
        assert [source.question(i).answers[0] for i in range(3)] == ["Desk", "two", "desk"]
        assert source.image(source.question(0).image).size == (40, 30)


def test_a_json_list_of_records_is_a_table(tmp_path):
    """The layout of the data of ALBEF, BLIP and VizWiz."""
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(image_bytes(1))
    annotations = [{"answer": "soda", "answer_confidence": "yes"}] * 9 + [
        {"answer": "coke", "answer_confidence": "maybe"}
    ]
    rows = [{"image": "a.jpg", "question": "what?", "answers": annotations, "answerable": 1}]
    rows += [{"image": "b.jpg", "question": "why?", "answer": ["A", "A", "b"], "question_id": 7}]
    (tmp_path / "val.json").write_text(json.dumps(rows))
    source = open_questions(str(tmp_path / "val.json"), "val")
    assert [source.question(i).answers for i in range(2)] == [("soda",) * 9 + ("coke",), ("A", "A", "b")]
    assert source.where(1) == f"{tmp_path}/val.json, [1] (b.jpg)"
    for wrong, message in (
        ([rows[0], [1]], r"\[1\]: expected a record.*, got a list"),
        ([{"image": "a.jpg"}], r"\[0\]: no 'question'"),
    ):
        (tmp_path / "val.json").write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=rf"val\.json, {message}"):
            open_questions(str(tmp_path / "val.json"), "val")


def test_test_questions_have_no_answers(tmp_path):
    write_vqa(tmp_path, split="test2015")
    (tmp_path / "v2_mscoco_test2015_annotations.json").unlink()
    assert open_questions(str(tmp_path), "test").question(1).answers == ()


def test_an_image_number_in_two_splits_means_that_of_the_questions_split(tmp_path):
    write_vqa(tmp_path, "COCO_val2014_{:012d}.jpg")
    (tmp_path / "images" / f"COCO_train2014_{7:012d}.jpg").write_bytes(b"another")
    (tmp_path / "images" / f"COCO_xtra2014_{7:012d}.jpg").write_bytes(b"another")
    assert "COCO_val2014" in open_questions(str(tmp_path), "val").where(0)


def test_a_missing_image_annotation_or_split_is_named(tmp_path):
    path = write_vqa(tmp_path)
    with pytest.raises(DataError, match="no file with questions of train"):
        open_questions(str(tmp_path), "train")
    (tmp_path / "images" / f"NYU_{12:012d}.jpg").unlink()
    with pytest.raises(DataError, match=r"questions\[1\]: no image with number 12 under"):
        open_questions(str(path), "val")
    write_vqa(tmp_path)
    notes = tmp_path / "v2_mscoco_val2014_annotations.json"
    content = json.loads(notes.read_text())
    notes.write_text(json.dumps({"annotations": content["annotations"][:2]}))
    with pytest.raises(DataError, match=r"questions\[2\]: question_id 5 has no annotation"):
        open_questions(str(path), "val")


def test_keys_of_the_wrong_kind(tmp_path):
    path = write_vqa(tmp_path)
    for value in ("1", True, 2**70, None):
        path.write_text(json.dumps({"questions": [{"question_id": value, "image_id": 7, "question": "x"}]}))
        with pytest.raises(DataError, match=r"questions\[0\], 'question_id'"):
            open_questions(str(path), "val")


def test_tables_of_questions(tmp_path):
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    (tmp_path / "train.csv").write_text("image,question,answer\na.jpg,what?,cat\na.jpg,how many?,2\n")
    source = open_questions(str(tmp_path), "train")
    assert [source.question(i).answers for i in range(2)] == [("cat",), ("2",)]
    assert source.question(0).image == source.question(1).image
    rows = [{"image": "a.jpg", "question": "q", "answer": a} for a in (3, ["x", "y"])]
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_questions(str(tmp_path), "val")
    assert [source.question(i).answers for i in range(2)] == [("3",), ("x", "y")]
    (tmp_path / "test.csv").write_text("image,qestion,answer\na.jpg,what?,cat\n")
    with pytest.raises(DataError, match=r"test\.csv, line 2: no 'question'.*did you mean qestion"):
        open_questions(str(tmp_path), "test")


@pytest.mark.parametrize("count,score", [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_scores_are_the_official_average(count, score):
    answers = ["yes"] * count + [f"other {i}" for i in range(10 - count)]
    leave_one_out = sum(min(1, (count - (i < count)) / 3) for i in range(10)) / 10
    assert soft_scores(answers, str)["yes"] == pytest.approx(score) == pytest.approx(leave_one_out)


def test_a_single_answer_has_full_score():
    assert soft_scores(["Cat"], str.lower) == {"cat": 1.0}
    assert soft_scores([], str.lower) == {}


def test_the_answer_list_starts_with_the_most_common(tmp_path):
    write_vqa(tmp_path)
    source = open_questions(str(tmp_path), "val")
    next(tmp_path.glob("*annotations*")).rename(tmp_path / "elsewhere.json")
    with pytest.raises(
        DataError, match=r"\(val\): its questions have no answers; put their \*annotations\*.json beside them"
    ):
        answer_list(open_questions(str(tmp_path), "val"), str.lower)
    assert answer_list(source, str.lower, minimum=1) == ["desk", "two"]  # "chair" is never the most common
    assert answer_list(source, str.lower, minimum=2) == ["desk"]
    assert answer_list(source, str, minimum=1, max_answers=2) == ["Desk", "desk"]
    with pytest.raises(
        DataError, match=r"no answer is the most common one of 3 questions \(at most of 1\); lower --min_answer_count"
    ):
        answer_list(source, str, minimum=3)


def test_answers_are_withheld_of_a_whole_split_or_of_none(tmp_path):
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    rows = [{"image": "a.jpg", "question": "q", "answer": a} for a in ([], [])]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [open_questions(str(tmp_path), "test").question(i).answers for i in range(2)] == [(), ()]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, [{**rows[0], "answer": "cat"}, rows[1]])))
    with pytest.raises(DataError, match=r"test\.jsonl, line 2: no answer, though other questions of test have one"):
        open_questions(str(tmp_path), "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer_type": ["other"]}, r"annotations\[1\], 'answer_type': expected a text, got a list"),
        ({"answer_type": 3}, r"annotations\[1\], 'answer_type': expected a text, got an integer"),
        (
            {"answers": [{"answer": None}]},
            r"annotations\[1\], 'answers', \[0\], 'answer': expected an answer, got null",
        ),
        ({"answers": ["['desk']"]}, r"annotations\[1\], 'answers', \[0\]: .* printed value"),
        ({"answers": {"answer": "desk"}}, r"annotations\[1\], 'answers': expected a list, got a record"),
        ({"question_id": 1}, r"annotations\[1\]: question_id 1 is annotated twice"),
    ],
)
def test_annotations_of_the_wrong_kind_are_named(tmp_path, change, message):
    path = write_vqa(tmp_path)
    notes = tmp_path / "v2_mscoco_val2014_annotations.json"
    content = json.loads(notes.read_text())
    content["annotations"][1] |= change
    notes.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        open_questions(str(path), "val")


def test_an_annotation_without_a_kind_has_none(tmp_path):
    path = write_vqa(tmp_path)
    notes = tmp_path / "v2_mscoco_val2014_annotations.json"
    content = json.loads(notes.read_text())
    content["annotations"][0] |= {"answer_type": None, "answers": [{"answer": 3}, {"answer": "desk"}]}
    del content["annotations"][1]["answer_type"]
    notes.write_text(json.dumps(content))
    source = open_questions(str(path), "val")
    assert [source.question(i).kind for i in range(3)] == ["", "", "other"]
    assert source.question(0).answers == ("3", "desk")


def test_letters_of_choices_are_distinct_answers(tmp_path):
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    (tmp_path / "train.csv").write_text("image,question,answer\n" + "".join(f"a.jpg,which?,{a}\n" for a in "ABCDAAB"))
    source = open_questions(str(tmp_path), "train")
    assert answer_list(source, normalise_answer, minimum=1) == ["a", "b", "c", "d"]
    assert answer_prior(source, ["a", "b", "c", "d"], normalise_answer) == pytest.approx([3 / 7, 2 / 7, 1 / 7, 1 / 7])


def write_gqa(folder: Path, **changes: object) -> Path:
    """Writes two questions in GQA's form about one image; the path of the file."""
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "n7.jpg").write_bytes(image_bytes(7))
    first = {"question": "Is it red?", "imageId": "n7", "answer": "yes"}
    first |= {"types": {"structural": "verify", "semantic": "attr", "detailed": "verifyAttr"}, **changes}
    second = {"question": "Who is it?", "imageId": "n7", "answer": "man", "types": {"structural": "query"}}
    path = folder / "testdev_balanced_questions.json"
    path.write_text(json.dumps({"201307251": first, "201640614": second}))
    return path


def test_gqa_has_questions_by_id_with_structural_and_semantic_types(tmp_path):
    write_gqa(tmp_path)
    source = open_questions(str(tmp_path), "test-dev")
    first, second = source.question(0), source.question(1)
    assert (first.id, first.text, first.answers) == (201307251, "Is it red?", ("yes",))
    assert first.kinds == ("verify", "attr") and second.kinds == ("query",)
    assert first.image == second.image == 0 and source.image(0).size == (40, 30)
    assert "201640614 (images/n7.jpg)" in source.where(1)


def test_a_damaged_row_of_gqa_is_named(tmp_path):
    write_gqa(tmp_path, question=3)
    with pytest.raises(DataError, match="question 201307251"):
        open_questions(str(tmp_path), "test-dev")
    write_gqa(tmp_path, imageId="absent")
    with pytest.raises(DataError, match="absent"):
        open_questions(str(tmp_path), "test-dev")


def test_vqa_v2_has_the_answer_type_and_the_question_type(tmp_path):
    write_vqa(tmp_path)
    notes = next(tmp_path.glob("*annotations*.json"))
    content = json.loads(notes.read_text())
    for note in content["annotations"]:
        note["question_type"] = "how many"
    notes.write_text(json.dumps(content))
    question = open_questions(str(tmp_path), "val").question(0)
    assert question.kind == "other" and question.kinds == ("other", "how many")
