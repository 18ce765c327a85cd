"""The file formats in which the field keeps captions, each read into the same entries.

Every reader gives the entries of one split and raises DataError for whatever does not fit the format; none opens a
picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.data.cells import captions as captions_in
from diptych.data.cells import text
from diptych.data.folder import Folder, need, read_rows
from diptych.data.source import DataError
from diptych.keyed import uniform


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are called. `split` is used where the table has it."""

    image: str = "image"
    caption: str = "caption"
    question: str = "question"
    answer: str = "answer"
    split: str = "split"


@dataclass(frozen=True)
class Entry:
    """One image: its file relative to the folder, where it is named, and what is said about it."""

    file: str
    where: str
    captions: tuple[str, ...]


def karpathy(content: Any, path: Path, folder: Folder, split: str) -> Iterator[Entry]:
    """``dataset_*.json`` of Karpathy's splits; "restval" counts as train."""
    for i, image in enumerate(need(content, "images", list, str(path))):
        where = f"{path}, images[{i}]"
        own = need(image, "split", str, where)
        if split != ("train" if own == "restval" else own):
            continue
        name = need(image, "filename", str, where)
        places = [name, f"images/{name}"]
        if "filepath" in image:
            places.insert(0, f"{need(image, 'filepath', str, where)}/{name}")
        said = [text(s, "raw", f"{where}, sentences[{j}]") for j, s in enumerate(need(image, "sentences", list, where))]
        yield Entry(folder.find(places, where), where, tuple(said) or ("",))


def coco(content: Any, path: Path, folder: Folder) -> Iterator[Entry]:
    """``captions_*.json`` of COCO: one file is one split."""
    said: dict[Any, list[str]] = {}
    for i, note in enumerate(need(content, "annotations", list, str(path))):
        where = f"{path}, annotations[{i}]"
        said.setdefault(need(note, "image_id", (int, str), where), []).append(text(note, "caption", where))
    for i, image in enumerate(need(content, "images", list, str(path))):
        where = f"{path}, images[{i}]"
        captions = said.pop(need(image, "id", (int, str), where), None)
        if captions is None:  # COCO lists images that nobody described
            continue
        name = need(image, "file_name", str, where)
        part = path.stem.removeprefix("captions_")
        yield Entry(folder.find([f"{part}/{name}", f"images/{name}", name], where), where, tuple(captions))
    if said:
        raise DataError(f"{path}: annotations speak of image_id {next(iter(said))!r}, which 'images' lacks; add it")


def captions_table(path: Path, folder: Folder, split: str, columns: Columns, seed: int) -> Iterator[Entry]:
    """A CSV, TSV or JSONL file with a row per caption, or per list of captions; rows of one image are merged, at the place of the
    first.
    """
    merged: dict[str, tuple[str, str, list[str]]] = {}
    for where, row in table_rows(path, split, columns, seed):
        name = need(row, columns.image, str, where)
        captions = captions_in(row, columns.caption, where) or ("",)
        if name not in merged:
            merged[name] = folder.find([name, f"images/{name}"], where), where, []
        merged[name][2].extend(captions)
    yield from (Entry(file, where, tuple(captions)) for file, where, captions in merged.values())


def table_rows(path: Path, split: str, columns: Columns, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a split: by the split column, by a split named in the file's name, or 90/5/5 drawn by image name."""
    named = named_split(path)
    for where, row in read_rows(path):
        if columns.split in row:
            own = need(row, columns.split, str, where)
        else:
            own = named or drawn_split(need(row, columns.image, str, where), seed)
        if own == split:
            yield where, row


def named_split(path: Path) -> str | None:
    """The split that a file's name speaks of: ``train``, ``val`` (or ``dev``) or ``test``."""
    words = path.stem.lower().replace("-", "_").replace(".", "_").split("_")
    signs = {"test": ("test",), "train": ("train",), "val": ("val", "dev", "minival")}  # "test-dev" is test
    for split, said in signs.items():
        if any(word.rstrip("0123456789") in said for word in words):
            return split
    return None


def drawn_split(name: str, seed: int) -> str:
    """90 % train, 5 % val, 5 % test: a pure function of the name and the seed."""
    draw = uniform(seed, 0, [0], f"split of {name}", 1)[0, 0]
    return "train" if draw < 0.9 else "val" if draw < 0.95 else "test"
