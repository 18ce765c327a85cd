"""Readers of caption file formats (Karpathy's JSON, COCO's JSON, tables) into rows for `division.divide`.

Every reader gives the rows of all splits and raises DataError if a file does not fit the format; none opens an
image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from diptych.config.data import USUAL_LAYOUT, Columns
from diptych.config.spelling import suggest_name
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


USUAL_HEADINGS = {
    "image": ("filename", "file_name", "file", "filepath", "image_path", "path", "img", "picture", "photo"),
    "caption": ("text", "captions", "sentence", "title", "description", "raw"),
    "question": ("text", "query", "sentence"),
    "answer": ("label", "response", "reply"),
    "label": ("class", "category", "target", "classname"),
    "phrase": ("expression", "sentence", "query", "caption", "text", "ref"),
    "box": ("bbox", "boxes", "bounding_box"),
    "split": ("set", "partition", "fold"),
}
"""Headings of other data sets for each column, which a message suggests with --columns."""


def table(path: Path, columns: Columns, records: Sequence[Any] | None = None) -> Iterator[Row]:
    """Rows of a CSV, TSV or JSONL file, or `records` from a .json file with a list of them (ALBEF, BLIP, VizWiz).

    Each names an image and may name its split.
    """
    rows = list(read_rows(path) if records is None else listed(records, path))
    check_split_columns(path, [row for _, row in rows], columns)
    for where, row in rows:
        name = need(row, heading(row, columns, "image", where), str, where)
        yield Row(where, name, [name, f"images/{name}"], _split_cell(row, columns, where), row)


def heading(row: Any, columns: Columns, column: str, where: str, needed: bool = True) -> str:
    """The key of a row that contains a column (a field of Columns): its name, or one that differs in case or blanks.

    Raises DataError if there are several or, if it is `needed`, none; the message suggests ``--columns``.
    """
    name = getattr(columns, column)
    if not isinstance(row, dict):
        return name
    keys = tuple(key for key in row if isinstance(key, str))
    same = _same(keys, name)
    if len(same) > 1:
        raise DataError(f"{where}: {' and '.join(map(repr, same))} may both be the {column} column; keep one of them")
    if same or not needed:
        return same[0] if same else name
    near = suggest_name(name, keys)
    likely = next((key for key in keys if key.strip().lower() in USUAL_HEADINGS[column]), None)
    advice = (
        f"if it is {likely!r}, give --columns {column}={likely}" if likely else f"name it by --columns {column}=NAME"
    )
    raise DataError(f"{where}: no {name!r} among {sorted(keys)[:12]}: {advice}{near}")


@lru_cache(64)
def _same(keys: tuple[str, ...], name: str) -> list[str]:
    """The keys that differ from a name at most in case or blanks."""
    return [key for key in keys if key.strip().lower() == name.lower()]


def unread(row: Any, columns: Columns, read: Sequence[str]) -> str:
    """The columns of a row that are not read, for the line on the division; "" if there are none, or it is no row.

    `read`: the columns that are read besides image and split, as fields of Columns or by their own names.
    """
    if not isinstance(row, dict):
        return ""
    names = {getattr(columns, column, column).lower() for column in ("image", "split", *read)}
    others = [str(key) for key in row if str(key).strip().lower() not in names]
    return f"; columns not read: {', '.join(others[:12])}{', …' if len(others) > 12 else ''}" if others else ""


def check_no_columns(path: Path, columns: Columns) -> None:
    """Raises DataError for column names of a file that is no table."""
    if columns != USUAL_LAYOUT.columns:
        raise DataError(f"--columns is for tables, and {path} has a format of its own: leave it out")


def _split_cell(row: dict[str, Any], columns: Columns, where: str) -> str | None:
    """Value of the split column; None if the table has none."""
    own_name = columns.split != USUAL_LAYOUT.columns.split
    key = heading(row, columns, "split", where, needed=own_name)
    return need(row, key, str, where) if own_name or key in row else None


def check_split_columns(path: Path, rows: Sequence[Any], columns: Columns = USUAL_LAYOUT.columns) -> None:
    """Raises DataError if there is no split column, but another column contains only split names (``set``: train,
    val).

    The rows would be divided differently from what it says. A file named for the one split that it contains may have
    such a column.
    """
    rows = [row for row in rows if isinstance(row, dict)]
    names = dict.fromkeys(name for row in rows[:1] for name in row)
    split = columns.split
    if any(name.strip().lower() == split.lower() for name in names):
        return
    for name in (name for name in names if name not in astuple(columns)):
        words = [row.get(name) for row in rows if row.get(name) not in (None, "")]
        only = all(isinstance(word, str) and known_split(word) for word in words)
        if words and only and set(map(known_split, words)) != {named_split(path)}:
            raise DataError(
                f"{path}: column {name!r} contains splits ({words[0]!r}), but splits are read from {split!r}; rename it, or "
                f"of a table give --columns split={name}, or drop it to divide the rows at random"
            )


def merged(rows: Iterable[tuple[str, str, Iterable[str]]]) -> list[Entry]:
    """Entries from ``(file, where, captions)``, one per file, in order of first occurrence."""
    entries: dict[str, tuple[str, list[str]]] = {}
    for file, where, captions in rows:
        entries.setdefault(file, (where, []))[1].extend(captions)
    return [Entry(file, where, tuple(captions) or ("",)) for file, (where, captions) in entries.items()]
