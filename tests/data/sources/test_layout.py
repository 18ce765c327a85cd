"""Tables of one's own: columns of any name, images in any folder, by links, and by absolute paths."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.config.data import Columns, DataLayout
from diptych.config.tasks import Retrieval
from diptych.data.sources.base import DataError
from diptych.data.sources.captions import open_captions
from diptych.data.sources.vqa import open_questions
from tests.data.tiny_data import image_bytes

ROWS = 4
HEADINGS = st.text(st.characters(categories=("L", "N"), include_characters=" _-"), min_size=1, max_size=12).filter(
    lambda name: name == name.strip() and "=" not in name
)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writeheader()
        table.writerows(rows)
    return path


def pictures(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(ROWS):
        (folder / f"photo {i}.jpg").write_bytes(image_bytes(i))
    return [f"photo {i}.jpg" for i in range(ROWS)]


@given(
    headings=st.lists(HEADINGS, min_size=6, max_size=6, unique_by=str.lower),
    suffix=st.sampled_from((".csv", ".tsv", ".jsonl")),
    place=st.sampled_from(("", "images", "a/b c/d", "elsewhere", "linked")),
    naming=st.sampled_from(("name", "path", "absolute")),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_columns_of_any_name_and_images_in_any_folder(tmp_path_factory, headings, suffix, place, naming):
    root = tmp_path_factory.mktemp("own")
    data, images = root / "data", root / ("outside" if place in ("elsewhere", "linked") else f"data/{place}")
    names = pictures(images)
    data.mkdir(exist_ok=True)
    if place == "linked":
        os.symlink(images, data / "linked")
    if naming == "path" and place not in ("", "elsewhere"):
        names = [f"{place.split('/')[-1]}/{name}" for name in names]
    if naming == "absolute":
        names = [str(images / name) for name in names]
    image, caption, question, answer, split, other = headings
    rows = [
        {image: name, caption: f"caption {i}", question: f"what {i} ?", answer: f"yes {i}", split: "val", other: "x"}
        for i, name in enumerate(names)
    ]
    path = write(data / f"table{suffix}", rows)
    columns = Columns.parse(f"image={image},caption={caption},question={question},answer={answer},split={split}")
    needs_root = place == "elsewhere" or (place == "linked" and naming == "absolute")
    layout = DataLayout(columns, str(images) if needs_root else "")
    captioned, asked = open_captions(str(path), "val", layout), open_questions(str(path), "val", layout)
    for i in range(ROWS):
        assert captioned.captions(i) == (f"caption {i}",)
        assert (asked.question(i).text, asked.question(i).answers) == (f"what {i} ?", (f"yes {i}",))
        assert captioned.image(i).tobytes() == asked.image(i).tobytes()
    assert len({captioned.image(i).tobytes() for i in range(ROWS)}) == ROWS
    assert f"columns not read: {question}, {answer}, {other}" in captioned.division  # type: ignore[attr-defined]
    if needs_root:
        with pytest.raises(DataError, match="--images_root"):
            open_captions(str(path), "val", DataLayout(columns))


@pytest.mark.parametrize("heading", ["text", "Title", "sentence"])
def test_a_missing_column_is_suggested(tmp_path, heading):
    names = pictures(tmp_path)
    path = write(tmp_path / "val.csv", [{"Image": name, heading: "a"} for name in names])
    with pytest.raises(DataError, match=rf"no 'caption' among .*give --columns caption={heading}$"):
        open_captions(str(path), "val")
    assert len(open_captions(str(path), "val", DataLayout(Columns(caption=heading)))) == ROWS


def test_several_files_of_one_name_are_not_confused(tmp_path):
    for folder in ("small", "large"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").write_bytes(image_bytes(len(folder)))
    (tmp_path / "again").symlink_to(tmp_path / "small")
    path = write(tmp_path / "val.csv", [{"image": "x.jpg", "caption": "a"}])
    with pytest.raises(DataError, match=r"line 2: 'x.jpg' may be 'again/x.jpg' or 'large/x.jpg' .* more of the path"):
        open_captions(str(path), "val")
    write(tmp_path / "val.csv", [{"image": "small/x.jpg", "caption": "a"}])
    assert len(open_captions(str(path), "val")) == 1


def test_a_loop_of_links_ends(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "x.jpg").write_bytes(image_bytes())
    (tmp_path / "below" / "loop").symlink_to(tmp_path)
    path = write(tmp_path / "val.csv", [{"image": "x.jpg", "caption": "a"}])
    assert len(open_captions(str(path), "val")) == 1


@pytest.mark.parametrize("root", ["", "inside"])
@pytest.mark.parametrize("name", ["../secret.jpg", "SECRET", "a/../../secret.jpg", "inside/../../secret.jpg"])
def test_rows_do_not_lead_out_of_the_folder(tmp_path, root, name):
    (tmp_path / "secret.jpg").write_bytes(image_bytes())
    inside = tmp_path / "inside"
    name = name.replace("SECRET", str(tmp_path / "secret.jpg"))
    path = write(inside / "val.csv", [{"image": name, "caption": "a"}])
    with pytest.raises(DataError, match=r"val.csv, line 2: .* leads outside .*inside"):
        open_captions(str(path), "val", DataLayout(images_root=str(inside) if root else ""))


@pytest.mark.parametrize("text", ["caption", "caption=", "words=text", "caption=a,caption=b", "caption=a,,image"])
def test_columns_that_cannot_be_read(text):
    with pytest.raises(ValueError, match="columns: expected pairs such as image=filename,caption=text"):
        Retrieval(columns=text)


def test_a_layout_that_the_data_have_not(tmp_path):
    for spec, layout, message in (
        ("scenes:4", DataLayout(Columns(caption="text")), "--columns is for tables, and scenes:4 is none"),
        ("scenes:4", DataLayout(images_root=str(tmp_path)), "--images_root is for files that name images"),
        ("x.tar", DataLayout(images_root=str(tmp_path)), "--images_root is for files that name images"),
        (str(tmp_path), DataLayout(images_root=str(tmp_path / "gone")), "no such folder; check --images_root"),
    ):
        with pytest.raises(DataError, match=message):
            open_captions(spec, "train", layout)
