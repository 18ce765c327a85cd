"""Cells of data files: texts are read unchanged, and no other value becomes a text."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.cli import main
from diptych.data.sources.base import DataError
from diptych.data.sources.captions import open_captions
from diptych.data.sources.cells import answers, captions, optional_text, text
from diptych.data.sources.vqa import open_questions
from diptych.data.webdataset.tar_samples import tar_samples
from tests.data.tiny_data import image_bytes

PRINTED = (
    "['a', 'b']", "['a' 'b']", "[u'a', u'b']", "{'answer': 'a'}", "('a', 'b')", "('a',)", "b'a'", "[None]", "[nan, 'a']",
    "{'a', 'b'}", "array(['a'], dtype=object)", "[['a']]", "[1 2]", "{1: 2}", "np.str_('a')",
)  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "read"),
    [
        ("cat", ("cat",)),
        (" two words ", (" two words ",)),
        ("A", ("A",)),
        ("None", ("None",)),  # an answer to "how many?"
        ("(left) and (right)", ("(left) and (right)",)),
        (3, ("3",)),
        (-2, ("-2",)),
        (["a", "b", "a"], ("a", "b", "a")),
        ([1, "one"], ("1", "one")),
        (["nan", ""], ("nan", "")),  # bread, and an annotator who wrote nothing
        ({"answer": "desk", "answer_confidence": "yes", "answer_id": 1}, ("desk",)),
        ([{"answer": "desk", "answer_confidence": "maybe"}, {"answer": 2}], ("desk", "2")),
        ('["a", "b"]', ("a", "b")),  # one cell of a CSV
        (' [{"answer": "a"}, "b", 3] ', ("a", "b", "3")),
        ('{"answer": "a"}', ("a",)),
        ([], ()),  # withheld
        ("[]", ()),
    ],
)
def test_answers_are_read_by_their_type(cell: Any, read: tuple[str, ...]):
    assert answers({"answer": cell}, "answer", "row 3") == read


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "expected an answer, got null"),
        (True, "true or false"),
        (2.5, "a decimal number"),
        (float("nan"), "a decimal number"),
        (2**70, "more than 64 bits"),
        (["a", None], r"\[1\]: expected an answer, got null"),
        (["a", ["b"]], r"\[1\]: expected an answer, got a list"),
        (["a", {"answer": None}], r"\[1\], 'answer': expected an answer, got null"),
        ([{"answers": "a"}], r"\[0\]: no 'answer'"),
        ({"yes": 3, "no": 7}, "no 'answer'"),
        ("", "an empty answer"),
        ("  ", "an empty answer"),
        (["", " "], "an empty answer"),
        ("nan", "missing value"),
        ("<NA>", "missing value"),
        ("[yes, no]", "not a JSON list"),
        ("[laughs]", "not a JSON list"),
        (["['a', 'b']"], "printed value"),
        *[(cell, "not a JSON list|printed value|a list|true or false") for cell in PRINTED],
        ('["a", null]', r"\[1\]: expected an answer, got null"),
    ],
)
def test_an_invalid_answer_raises_with_row_and_key(cell: Any, message: str):
    with pytest.raises(DataError, match=message) as error:
        answers({"answer": cell}, "answer", "t.jsonl, line 3")
    assert str(error.value).startswith("t.jsonl, line 3, 'answer'") and "\n" not in str(error.value)


@pytest.mark.parametrize("cell", PRINTED)
def test_a_printed_python_value_is_not_a_text(cell: str):
    for read in (text, captions, answers):
        with pytest.raises(DataError, match="row 3, 'x'"):
            read({"x": cell}, "x", "row 3")


@pytest.mark.parametrize(
    "cell",
    ["a dog", "[a dog] on grass", "a sign (stop)", "(a) one (b) two", "{red} [blue]", "[dog]", "'quoted'", '"quoted"', "nan bread", "a, b",
     "b's dog", "3.5", "array of dogs", "[1] a dog, [2] a cat", ""],
)  # fmt: skip
def test_unusual_captions_are_kept(cell: str):
    assert captions({"x": cell}, "x", "row 3") == (cell,)


@pytest.mark.parametrize("cell", ["nan", "NaN", " nan ", "<NA>", "None"])
def test_a_printed_missing_value_is_neither_a_caption_nor_a_question(cell: str):
    for read in (text, captions):
        with pytest.raises(DataError, match=r"row 3, 'x': .* stands for a missing value"):
            read({"x": cell}, "x", "row 3")


def test_captions_may_be_a_list_in_json_and_in_one_cell():
    assert captions({"x": ["a", "b"]}, "x", "") == captions({"x": '["a", "b"]'}, "x", "") == ("a", "b")
    for cell in ([1], '["a", 1]', ["a", None], '[["a"]]', [{"raw": "a"}], None, 5):
        with pytest.raises(DataError, match="row 3, 'x'"):
            captions({"x": cell}, "x", "row 3")


def test_an_optional_text_may_be_missing_but_not_another_type():
    assert [optional_text(row, "x", "row 3") for row in ({}, {"x": None}, {"x": ""}, {"x": "number"})] == [
        "",
        "",
        "",
        "number",
    ]
    for value in (1, True, ["a"], {"a": 1}, 2.5):
        with pytest.raises(DataError, match="row 3, 'x'"):
            optional_text({"x": value}, "x", "row 3")


@pytest.mark.parametrize(
    "long",
    ["[" + "1" * 500_000 + "x]", "('" + "'" * 500_000 + ")", "('" + "' " * 250_000 + "x)", "[" + " " * 500_000 + "x]", "[" * 500_000 + "x",
     "(" + "None" * 100_000 + ")", "['" + "]" * 500_000 + "x"],
    ids=range(7),
)  # fmt: skip
def test_a_long_cell_takes_linear_time(long: str):
    assert captions({"x": long}, "x", "row 3") == (long,)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([*PRINTED, '["a", "b"]', "nan"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["answer", "caption", "raw", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)


def strings_in(value: Any) -> set[str]:
    """Every string and number in a JSON value, and in the JSON that a string contains."""
    if isinstance(value, dict):
        return {text for inner in value.values() for text in strings_in(inner)}
    if isinstance(value, list):
        return {text for inner in value for text in strings_in(inner)}
    strings = {value} if isinstance(value, str) else {json.dumps(value)} if type(value) is int else set()
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        with suppress(ValueError):
            strings |= strings_in(json.loads(value))
    return strings


@given(JSON)
def test_a_cell_gives_strings_that_occur_in_it_or_raises(value: Any):
    for read in (answers, captions, text, optional_text):
        try:
            result = read({"x": value}, "x", "t.jsonl, line 3")
        except DataError as error:
            assert str(error).startswith("t.jsonl, line 3") and "'x'" in str(error)
        else:
            texts = (result,) if isinstance(result, str) else result
            assert set(texts) <= strings_in(value) | ({""} if read is optional_text else set())


def jsonl_of_answers(folder: Path, value: Any) -> list[str]:
    (folder / "val.jsonl").write_text(json.dumps({"image": "a.jpg", "question": "q?", "answer": value}))
    return list(open_questions(str(folder / "val.jsonl"), "val").question(0).answers)


def csv_of_answers(folder: Path, value: Any) -> list[str]:
    _csv(folder / "val.csv", ["image", "question", "answer"], ["a.jpg", "q?", _cell(value)])
    return list(open_questions(str(folder / "val.csv"), "val").question(0).answers)


def vqa_annotations(folder: Path, value: Any) -> list[str]:
    questions = [{"question_id": 1, "image_id": 7, "question": "q?"}]
    (folder / "v2_val2014_questions.json").write_text(json.dumps({"questions": questions}))
    note = {"question_id": 1, "answers": [value], "answer_type": "other"}
    (folder / "v2_val2014_annotations.json").write_text(json.dumps({"annotations": [note]}))
    return list(open_questions(str(folder / "v2_val2014_questions.json"), "val").question(0).answers)


def jsonl_of_captions(folder: Path, value: Any) -> list[str]:
    (folder / "val.jsonl").write_text(json.dumps({"image": "a.jpg", "caption": value}))
    return list(open_captions(str(folder / "val.jsonl"), "val").captions(0))


def csv_of_captions(folder: Path, value: Any) -> list[str]:
    _csv(folder / "val.csv", ["image", "caption"], ["a.jpg", _cell(value)])
    return list(open_captions(str(folder / "val.csv"), "val").captions(0))


def karpathy(folder: Path, value: Any) -> list[str]:
    image = {"filename": "a.jpg", "split": "val", "sentences": [{"raw": value}]}
    (folder / "dataset.json").write_text(json.dumps({"images": [image]}))
    return list(open_captions(str(folder / "dataset.json"), "val").captions(0))


def coco(folder: Path, value: Any) -> list[str]:
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": value}]}
    (folder / "captions_val.json").write_text(json.dumps(content))
    return list(open_captions(str(folder / "captions_val.json"), "val").captions(0))


def tar_json(folder: Path, value: Any) -> list[str]:
    _tar(folder / "val.tar", {"a.jpg": b"x", "a.json": json.dumps({"caption": value}).encode()})
    return _both_tar_readers(folder / "val.tar")


def tar_txt(folder: Path, value: Any) -> list[str]:
    _tar(folder / "val.tar", {"a.jpg": b"x", "a.txt": _cell(value).encode(errors="replace")})
    return _both_tar_readers(folder / "val.tar")


def _both_tar_readers(path: Path) -> list[str]:
    """The captions of the only sample by random access; asserts that the stream reader returns the same."""
    ((raw, _),) = tar_samples(path)
    try:
        captions = list(open_captions(str(path), "val").captions(0))
    except DataError:
        assert raw.bad and raw.captions == ("",)
        raise
    assert list(raw.captions) == captions and not raw.bad
    return captions


def _cell(value: Any) -> str:
    """One cell of a CSV: a text unchanged, any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _csv(path: Path, header: list[str], row: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        csv.writer(file).writerows([header, row])


def _tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


READERS: list[Callable[[Path, Any], list[str]]] = [
    jsonl_of_answers, csv_of_answers, vqa_annotations, jsonl_of_captions, csv_of_captions, karpathy, coco, tar_json, tar_txt,
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the image that every row names."""
    folder = tmp_path_factory.mktemp("cells")
    for name in ("a.jpg", "000007.jpg"):
        (folder / name).write_bytes(image_bytes())
    return folder


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@settings(max_examples=60)
@given(value=JSON)
def test_every_reader_gives_values_of_the_file_or_raises_with_file_and_key(
    folder: Path, read: Callable[[Path, Any], list[str]], value: Any
):
    try:
        result = read(folder, value)
    except DataError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
    else:
        allowed = strings_in(json.loads(json.dumps(value))) | {_cell(value)} | {"", _cell(value).replace("\r\n", "\n")}
        allowed |= {text.encode(errors="replace").decode() for text in allowed}
        allowed |= {inner for cell in set(allowed) for inner in strings_in(cell)}
        assert set(result) <= allowed


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize("cell", ["['a', 'b']", "{'answer': 'a'}", "b'a'"])
def test_no_reader_accepts_a_printed_value_as_a_text(folder: Path, read: Callable[[Path, Any], list[str]], cell: str):
    with pytest.raises(DataError, match=r"printed|not a JSON list"):
        read(folder, cell)


def test_the_command_lines_error_names_file_row_and_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    rows = [{"image": "a.jpg", "question": "what?", "answer": answer} for answer in ("cat", None)]
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["baselines", "--task", "vqa", "--data", str(tmp_path)]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert (
        f"{tmp_path / 'train.jsonl'}, line 2, 'answer': expected an answer, got null" in message
        and "drop the row" in message
    )


def test_the_command_line_scores_answers_given_as_records_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    record = {"answer": "cat", "answer_confidence": "yes"}
    rows = [{"image": "a.jpg", "question": "what?", "answer": cell} for cell in (record, [record] * 10)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _csv(tmp_path / "val.csv", ["image", "question", "answer"], ["a.jpg", "what?", json.dumps([record] * 10)])
    assert main(["baselines", "--task", "vqa", "--data", str(tmp_path), "--out", str(tmp_path / "out.json")]) == 0
    baselines = json.loads((tmp_path / "out.json").read_text())["baselines"]
    assert baselines["most common answer"] == {"accuracy": 1.0}
