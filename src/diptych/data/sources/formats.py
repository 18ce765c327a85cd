"""Readers of caption file formats (Karpathy's JSON, COCO's JSON, tables) into rows for `division.divide`.

Every reader gives the rows of all splits and raises DataError if a file does not fit the format; none opens an
image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from diptych.config.data import USUAL_LAYOUT, Columns
from diptych.data.sources.base import DataError
from diptych.data.sources.cells import text
from diptych.data.sources.division import Row
from diptych.data.sources.paths import listed, need, read_rows
from diptych.data.sources.splits import known_split, named_split


@dataclass(frozen=True)
class Entry:
    """One image: its file relative to the folder, the row that names it, and its captions."""

    file: str
    where: str
    captions: tuple[str, ...]


def karpathy(content: Any, path: Path) -> Iterator[Row]:
    """Rows of a ``dataset_*.json`` of Karpathy's splits."""
    for i, image in enumerate(need(content, "images", list, str(path))):
        where = f"{path}, images[{i}]"
        own = need(image, "split", str, where)
        name = need(image, "filename", str, where)
        places = [name, f"images/{name}"]
        if "filepath" in image:
            places.insert(0, f"{need(image, 'filepath', str, where)}/{name}")
        yield Row(where, places[0], places, own, image)


def karpathy_captions(row: Row) -> Iterator[str]:
    """Captions of an image in Karpathy's JSON."""
    for j, sentence in enumerate(need(row.content, "sentences", list, row.where)):
        yield text(sentence, "raw", f"{row.where}, sentences[{j}]")


def coco(content: Any, path: Path) -> Iterator[Row]:
    """Rows of a ``captions_*.json`` of COCO; the content of a row is its captions."""
    captions: dict[Any, list[str]] = {}
    for i, note in enumerate(need(content, "annotations", list, str(path))):
        where = f"{path}, annotations[{i}]"
        captions.setdefault(need(note, "image_id", (int, str), where), []).append(text(note, "caption", where))
    known: dict[int | str, str] = {}
    images = need(content, "images", list, str(path))
    check_split_columns(path, images)
    for i, image in enumerate(images):
        where = f"{path}, images[{i}]"
        number = need(image, "id", (int, str), where)
        if number not in captions and number not in known:  # COCO lists images without captions
            continue
        name, part = need(image, "file_name", str, where), path.stem.removeprefix("captions_")
        if known.setdefault(number, name) != name:
            raise DataError(f"{where}: id {number!r} is also that of {known[number]!r}; give each image its own id")
        own = need(image, "split", str, where) if "split" in image else None
        yield Row(where, name, [f"{part}/{name}", f"images/{name}", name], own, captions.pop(number, []))
    if captions:
        raise DataError(
            f"{path}: annotations name image_id {next(iter(captions))!r}, which is missing from 'images'; add it"
        )


def table(path: Path, columns: Columns, records: Sequence[Any] | None = None) -> Iterator[Row]:
    """Rows of a CSV, TSV or JSONL file, or `records` from a .json file with a list of them (ALBEF, BLIP, VizWiz).

    Each names an image and may name its split.
    """
    rows = list(read_rows(path) if records is None else listed(records, path))
    check_split_columns(path, [row for _, row in rows], columns)
    for where, row in rows:
        name = need(row, columns.image, str, where)
        yield Row(where, name, [name, f"images/{name}"], _split_cell(row, columns.split, where), row)


def _split_cell(row: dict[str, Any], column: str, where: str) -> str | None:
    """Value of the split column, ignoring the case of its heading (``Split``); None if the table has none."""
    headings = [name for name in row if name.strip().lower() == column] or [column]
    if len(headings) > 1:
        raise DataError(f"{where}: {' and '.join(map(repr, headings))} may both be the split column; keep one of them")
    heading = headings[0]
    usual = column == Columns.split and heading not in row
    return None if usual else need(row, heading, str, where)


def check_split_columns(path: Path, rows: Sequence[Any], columns: Columns = USUAL_LAYOUT.columns) -> None:
    """Raises DataError if there is no split column, but another column contains only split names (``set``: train,
    val).

    The rows would be divided differently from what it says. A file named for the one split that it contains may have
    such a column.
    """
    rows = [row for row in rows if isinstance(row, dict)]
    names = dict.fromkeys(name for row in rows[:1] for name in row)
    if any(name.strip().lower() == columns.split for name in names):
        return
    read = astuple(columns)
    for name in (name for name in names if name not in read):
        words = [row.get(name) for row in rows if row.get(name) not in (None, "")]
        only = all(isinstance(word, str) and known_split(word) for word in words)
        if words and only and set(map(known_split, words)) != {named_split(path)}:
            raise DataError(
                f"{path}: column {name!r} contains splits ({words[0]!r}), but splits are read from {columns.split!r}; "
                "rename it, or drop it to divide the rows at random"
            )


def merged(rows: Iterable[tuple[str, str, Iterable[str]]]) -> list[Entry]:
    """Entries from ``(file, where, captions)``, one per file, in order of first occurrence."""
    entries: dict[str, tuple[str, list[str]]] = {}
    for file, where, captions in rows:
        entries.setdefault(file, (where, []))[1].extend(captions)
    return [Entry(file, where, tuple(captions) or ("",)) for file, (where, captions) in entries.items()]
