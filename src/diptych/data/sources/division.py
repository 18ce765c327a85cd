"""Division of a file's rows into splits: by a split column, by the file's name, or at random by image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diptych.data.sources.base import DataError, NoSplit
from diptych.data.sources.copies import byte_range, same_bytes
from diptych.data.sources.paths import Folder
from diptych.data.sources.splits import counted, drawn_splits, file_split, split_of
from diptych.utils.terminal import echo


class Row(NamedTuple):
    """A row of a file of any format.

    `where` locates it in messages; `name` is its image as the row names it, `places` the relative paths to look for it;
    `split` is None if the row names none.
    """

    where: str
    name: str
    places: Sequence[str]
    split: str | None
    content: Any


class Divided(NamedTuple):
    """Rows of one split, each with its image file, and one line on how the file was divided."""

    rows: list[tuple[str, Row]]
    division: str


def divide(
    path: Path, rows: Iterable[Row], folder: Folder, split: str, seed: int = 0, own: Sequence[str] = ()
) -> Divided:
    """Rows of `split`. `own`: further splits of the format, beyond train, val and test.

    If one row names a split, every row must. Otherwise a file named for a split contains only that split; any other
    file is divided 90/5/5 by image, keyed by `seed` and the image's name (the alphabetically first of several). Images
    with equal bytes are one image: all its rows are in one split, unless rows name two splits for its copies, about
    which the division line warns.

    Raises:
        DataError: rows name two splits for one file, or only some name one.
        NoSplit: no row is in `split`.
    """
    rows = list(rows)
    if not rows:
        raise NoSplit(f"{path}: the file is empty: no rows in split {split!r} or any other; correct the file")
    if any(row.split is not None for row in rows):
        images = _pictures(rows, folder)
        splits, how = _declared(rows, folder, own), "by its split column, counted in images"
    elif (named := file_split(path, own)) is not None:
        images = [folder.seek(row.places) or row.name for row in rows]
        splits, how = [named] * len(rows), f"named for {named}, counted in files"
    else:
        images = _pictures(rows, folder)
        names = [os.path.normpath(row.name) for row in rows]
        splits, how = drawn_splits(names, images, seed), f"divided by image, seed {seed}"
    distinct = dict.fromkeys(zip(images, splits, strict=True))
    division = f"{how}: {counted(split for _, split in distinct)}{_copies(rows, images, splits)}"
    chosen = [row for row, own_split in zip(rows, splits, strict=True) if own_split == split]
    if not chosen:
        raise NoSplit(f"{path}: no rows in split {split!r} ({division}); name another split or correct the file")
    found = [(folder.find(row.places, row.where), row) for row in chosen]
    return Divided(found, f"{path.name}: {division}{_links(dict.fromkeys(file for file, _ in found), folder)}")


def _links(files: Iterable[str], folder: Folder) -> str:
    """The number of images that links out of the folder lead to, and the first; "" if there are none."""
    out = [file for file in files if folder.linked_out(file)]
    first = f" ({out[0]} is {(folder.root / out[0]).resolve()})" if out else ""
    return f"; {len(out)} images are links out of {folder.root}{first}" if out else ""


def _pictures(rows: Sequence[Row], folder: Folder) -> list[Any]:
    """Key of each row's image, equal for all copies: index of the first file with its bytes.

    The name if the file is missing, which is an error when its split is opened.
    """
    files = [folder.seek(row.places) for row in rows]
    places = {file: at for at, file in enumerate(dict.fromkeys(file for file in files if file is not None))}
    first = same_bytes([byte_range(folder.root / file) for file in places])
    return [
        os.path.normpath(row.name) if file is None else first[places[file]]
        for row, file in zip(rows, files, strict=True)
    ]


def _declared(rows: Sequence[Row], folder: Folder, own: Sequence[str]) -> list[str]:
    """Split named by each row. Raises DataError."""
    splits: list[str] = []
    before: dict[str, tuple[str, Row]] = {}
    for row in rows:
        if row.split is None:
            raise DataError(f"{row.where}: names no split, though other rows do; add one to every row or to none")
        splits.append(split_of(row.split, row.where, own))
        file = folder.seek(row.places) or os.path.normpath(row.name)
        split, first = before.setdefault(file, (splits[-1], row))
        if split != splits[-1]:
            raise DataError(
                f"{row.where}: {row.name!r} is in split {splits[-1]}, but in {split} as {first.name!r} "
                f"({first.where}); put all rows of an image in one split"
            )
    return splits


def _copies(rows: Sequence[Row], images: Sequence[Any], splits: Sequence[str]) -> str:
    """Warning about images that are in two splits under two names: their number and the first; "" if there are none."""
    first: dict[Any, tuple[str, str]] = {}
    shared: dict[Any, str] = {}
    for row, image, split in zip(rows, images, splits, strict=True):
        name, other = first.setdefault(image, (row.name, split))
        if other != split:
            shared.setdefault(image, f"{name!r} of {other} is {row.name!r} of {split}")
    return (
        f"; WARNING: {len(shared)} images are in two splits as copies ({next(iter(shared.values()))})" if shared else ""
    )


def division_of(source: Any) -> str:
    """One line on how the data was divided into splits; "" if it was not divided.

    Args:
        source: a source, or examples or a wrapper of one (with an attribute `pairs` or `source`).
    """
    while not hasattr(source, "division"):
        source = getattr(source, "pairs", None) or getattr(source, "source", None)
        if source is None:
            return ""
    return source.division


def say_division(source: Any, but: str = "") -> None:
    """Prints `division_of(source)` unless it is empty or the line `but`, which was printed before."""
    if (line := division_of(source)) and line != but:
        echo(line)
