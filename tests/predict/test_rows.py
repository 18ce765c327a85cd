"""JSON Lines files of predictions: whole lines, continued after an interruption, never over other files."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from diptych.inference.saved_model import RunError
from diptych.predict.rows import RowFile, left_to_do, open_rows, settings_file, to_line
from diptych.utils.io import DamagedFile, WriteError
from diptych.utils.lock import InUse

SETTINGS = {"command": "caption", "model": "abc", "num_beams": 3}


def append(path: Path, *rows: dict[str, Any], each: int = 1, **settings: Any) -> dict[str, int]:
    """Appends rows; how many items of each name were done before."""
    with open_rows(str(path), SETTINGS | settings, each=each) as file:
        done = dict(file.done)
        if rows:
            file.write(rows)
    return done


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_appended_and_counted(tmp_path: Path):
    out = tmp_path / "new" / "rows.jsonl"
    assert append(out, {"image": "a", "caption": "x"}) == {}
    assert append(out, {"image": "a", "caption": "y"}, {"image": "b", "error": "z"}) == {"a": 1}
    assert append(out) == {"a": 2}
    with open_rows(str(out), SETTINGS) as file:
        assert file.failed == {"b": 1}
    assert [row["image"] for row in lines(out)] == ["a", "a", "b"]
    assert json.loads(settings_file(out).read_text()) == SETTINGS
    assert sorted(path.name for path in out.parent.iterdir()) == ["rows.jsonl", "rows.jsonl.settings.json"]


def test_nothing_is_written_before_the_first_row(tmp_path: Path):
    append(tmp_path / "new" / "rows.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "abd"}, "rows.jsonl has rows of another model: give the same again, or another --out"),
        ({"num_beams": 5}, "rows.jsonl has rows with num_beams = 3, not 5"),
        ({"question": "why?"}, "rows.jsonl has rows with question = None, not 'why"),
    ],
)
def test_rows_of_other_settings_are_refused(tmp_path: Path, settings: dict[str, Any], message: str):
    out = tmp_path / "rows.jsonl"
    append(out, {"image": "a"})
    before = out.read_bytes()
    with pytest.raises(RunError, match=message):
        append(out, {"image": "b"}, **settings)
    assert out.read_bytes() == before


def test_other_files_are_not_written_over(tmp_path: Path):
    out = tmp_path / "notes.jsonl"
    out.write_text('{"image": "a"}\n')
    with pytest.raises(RunError, match="exists, and was not written by this command"):
        append(out, {"image": "b"})
    with pytest.raises(RunError, match="is a folder; give a file in it"):
        append(tmp_path, {"image": "b"})
    settings_file(tmp_path / "rows.jsonl").write_text("my notes")
    with pytest.raises(DamagedFile, match="not the JSON that was written there"):
        append(tmp_path / "rows.jsonl", {"image": "b"})
    assert out.read_text() == '{"image": "a"}\n'


@hypothesis_settings(max_examples=15)
@given(st.integers(1, 3), st.data())
def test_a_file_cut_at_any_byte_is_continued_to_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, each: int, data: st.DataObject
):
    out = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    names = data.draw(st.lists(st.sampled_from(["a", "b\n", "ü", "\udcff"]), min_size=1, max_size=6))

    def continue_rows() -> None:
        with open_rows(str(out), SETTINGS, each=each) as file:
            for i in left_to_do(names, file):
                file.write([{"image": names[i], "number": k} for k in range(each)])

    continue_rows()
    whole = out.read_bytes()
    with out.open("r+b") as file:
        file.truncate(data.draw(st.integers(0, len(whole))))
    continue_rows()
    assert out.read_bytes() == whole


def test_a_row_that_is_removed_from_an_item_is_noticed(tmp_path: Path):
    out = tmp_path / "rows.jsonl"
    append(out, *({"image": name, "text": text} for name in "ab" for text in "xy"), each=2)
    out.write_text("".join(out.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(DamagedFile, match="expected 2 rows of 'a', got 1"):
        append(out, each=2)


@pytest.mark.parametrize(
    ("line", "message"), [("{", "line 2: not the JSON"), ('{"caption": "x"}', "line 2: the object lacks 'image'")]
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, message: str):
    out = tmp_path / "rows.jsonl"
    append(out, {"image": "a"})
    out.write_text(f"{out.read_text()}{line}\n")
    with pytest.raises(DamagedFile, match=message):
        append(out)


def test_a_file_that_is_being_written_is_refused(tmp_path: Path):
    refused: list[Exception] = []

    def second_writer() -> None:
        try:
            append(tmp_path / "rows.jsonl")
        except InUse as error:
            refused.append(error)

    with open_rows(str(tmp_path / "rows.jsonl"), SETTINGS):
        thread = threading.Thread(target=second_writer)
        thread.start()
        thread.join()
    assert len(refused) == 1


class FullDisk(io.FileIO):
    """A file that takes 5 bytes at a time, and none past byte 20."""

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        if self.tell() > 20:
            raise OSError(28, "No space left on device")
        return super().write(data[:5])


def test_a_write_that_fails_leaves_whole_lines(tmp_path: Path):
    rows = RowFile(tmp_path / "rows.jsonl", SETTINGS)
    rows.write([{"image": "a"}])
    rows._file = FullDisk(tmp_path / "rows.jsonl", "ab")
    with pytest.raises(WriteError, match="make room on the disk"):
        rows.write([{"image": "b"}, {"image": "c"}])
    rows.close()
    assert (tmp_path / "rows.jsonl").read_text() == '{"image": "a"}\n'


def test_items_that_occur_several_times_have_rows_for_each(tmp_path: Path):
    out = tmp_path / "rows.jsonl"
    append(out, {"image": "a"}, {"image": "b"})
    with open_rows(str(out), SETTINGS) as file:
        assert left_to_do(["new", "b", "a", "a"], file) == [0, 3]


@hypothesis_settings(max_examples=30)
@given(st.integers(1, 2), st.data())
def test_items_with_an_error_are_tried_again_to_the_rows_of_a_first_try(
    tmp_path_factory: pytest.TempPathFactory, each: int, data: st.DataObject
):
    """Wherever the commands were interrupted, and whichever items could not be read at first."""
    folder = tmp_path_factory.mktemp("rows")
    names = data.draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=7))

    def write(out: Path, names: list[str], broken: set[str], stop_after: int = 99) -> None:
        with open_rows(str(out), SETTINGS, each=each) as file:
            for i in left_to_do(names, file)[:stop_after]:
                result = {"error": "broken"} if names[i] in broken else {"caption": names[i].upper()}
                file.write([{"image": names[i], "number": k} | result for k in range(each)])
            if stop_after == 99:
                file.arrange(names)

    out = folder / "again.jsonl"
    for _ in range(data.draw(st.integers(1, 3))):
        broken = data.draw(st.sets(st.sampled_from("abcde")))
        write(out, names, broken, data.draw(st.sampled_from([0, 1, 3, 99])))
        if out.exists():
            whole = out.read_bytes()
            with out.open("r+b") as file:
                file.truncate(data.draw(st.integers(max(0, len(whole) - 30), len(whole))))
    write(out, names, set())
    write(folder / "first.jsonl", names, set())
    assert out.read_bytes() == (folder / "first.jsonl").read_bytes()
    write(out, names, set("abcde"))
    assert out.read_bytes() == (folder / "first.jsonl").read_bytes()


def test_an_item_that_fails_again_has_one_row_with_the_latest_error(tmp_path: Path):
    out = tmp_path / "rows.jsonl"
    append(out, {"image": "other", "error": "x"}, {"image": "b", "error": "1"}, {"image": "a"}, {"image": "b"})
    append(out, {"image": "c", "error": "1"})
    with open_rows(str(out), SETTINGS) as file:
        assert left_to_do(["c", "b", "a"], file) == [0]
        file.write([{"image": "c", "error": "2"}])
        file.arrange(["c", "b", "a"])
        file.write([{"image": "d"}])
    assert lines(out) == [
        {"image": "other", "error": "x"}, {"image": "c", "error": "2"}, {"image": "b"}, {"image": "a"}, {"image": "d"},
    ]  # fmt: skip


def test_a_line_is_ascii_and_has_no_nan():
    line = to_line({"image": "\x1b[31m\u202e\n\udcff", "itc": float("nan"), "itm": np.float64(0.5).item()})
    assert line.isascii() and line.isprintable()
    assert json.loads(line) == {"image": "\x1b[31m\u202e\n\udcff", "itc": None, "itm": 0.5}


def test_rows_without_a_file_are_printed(capsys: pytest.CaptureFixture[str]):
    with open_rows("", SETTINGS) as rows:
        rows.write([{"image": "a"}, {"image": "b"}])
        assert left_to_do(["a"], rows) == [0]
    assert capsys.readouterr().out == '{"image": "a"}\n{"image": "b"}\n'
