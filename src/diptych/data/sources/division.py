"""Dividing the rows of a file: by the split that each names, by the file's own name, or drawn by picture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diptych.data.sources.base import DataError, NoSplit
from diptych.data.sources.copies import same_bytes, stored
from diptych.data.sources.paths import Folder
from diptych.data.sources.splits import counted, drawn_splits, file_split, split_of


class Row(NamedTuple):
    """A row of a file of any format: where it stands, its picture as it is named there and the paths at which that is
    sought, the split that it names (None: none), and its content.
    """

    where: str
    name: str
    places: Sequence[str]
    split: str | None
    content: Any


class Divided(NamedTuple):
    """The rows of one split, each with its picture's file, and how the file was divided, in a line."""

    rows: list[tuple[str, Row]]
    division: str


def divide(
    path: Path, rows: Iterable[Row], folder: Folder, split: str, seed: int = 0, own: Sequence[str] = ()
) -> Divided:
    """The rows of `split`. `own`: splits of the reader's own beside train, val and test.

    Where a row names a split every row must. Else a file that is named for a split is that split alone, and any other is
    divided 90/5/5 by picture, keyed by `seed` and the picture's name (of several names the first in the alphabet). A
    picture is what its bytes are: all rows of it are in one split, unless rows name two for its copies, which is said in the
    division. Raises DataError for rows that name two splits of one file, NoSplit.
    """
    rows = list(rows)
    if any(row.split is not None for row in rows):
        pictures = _pictures(rows, folder)
        splits, how = _declared(rows, folder, own), "by the splits of its rows, in pictures"
    elif (named := file_split(path, own)) is not None:
        pictures = [folder.seek(row.places) or row.name for row in rows]
        splits, how = [named] * len(rows), f"named for {named}, in files"
    else:
        pictures = _pictures(rows, folder)
        names = [os.path.normpath(row.name) for row in rows]
        splits, how = drawn_splits(names, pictures, seed), f"divided by picture, seed {seed}"
    held = dict.fromkeys(zip(pictures, splits, strict=True))
    division = f"{how}: {counted(split for _, split in held)}{_copies(rows, pictures, splits)}"
    chosen = [row for row, own_split in zip(rows, splits, strict=True) if own_split == split]
    if not chosen:
        raise NoSplit(f"{path}: nothing in split {split!r} ({division}); name another split or correct the file")
    return Divided([(folder.find(row.places, row.where), row) for row in chosen], f"{path.name}: {division}")


def _pictures(rows: Sequence[Row], folder: Folder) -> list[Any]:
    """A key for each row's picture, the same for all copies of it: the place of the first file with its bytes, or its name
    where the file is not there, which is refused when its split is opened.
    """
    files = [folder.seek(row.places) for row in rows]
    places = {file: at for at, file in enumerate(dict.fromkeys(file for file in files if file is not None))}
    first = same_bytes([stored(folder.root / file) for file in places])
    return [
        os.path.normpath(row.name) if file is None else first[places[file]]
        for row, file in zip(rows, files, strict=True)
    ]


def _declared(rows: Sequence[Row], folder: Folder, own: Sequence[str]) -> list[str]:
    """The split that each row names. Raises DataError."""
    splits: list[str] = []
    before: dict[str, tuple[str, Row]] = {}
    for row in rows:
        if row.split is None:
            raise DataError(f"{row.where}: it names no split, as other rows do; add one to each row or to none")
        splits.append(split_of(row.split, row.where, own))
        file = folder.seek(row.places) or os.path.normpath(row.name)
        split, first = before.setdefault(file, (splits[-1], row))
        if split != splits[-1]:
            raise DataError(
                f"{row.where}: {row.name!r} is in split {splits[-1]}, but in {split} as {first.name!r} "
                f"({first.where}); put all rows of a picture in one split"
            )
    return splits


def _copies(rows: Sequence[Row], pictures: Sequence[Any], splits: Sequence[str]) -> str:
    """What a division says of pictures that lie in two splits under two names: how many, and the first; "" where none do."""
    first: dict[Any, tuple[str, str]] = {}
    shared: dict[Any, str] = {}
    for row, picture, split in zip(rows, pictures, splits, strict=True):
        name, other = first.setdefault(picture, (row.name, split))
        if other != split:
            shared.setdefault(picture, f"{name!r} of {other} is {row.name!r} of {split}")
    return (
        f"; WARNING: {len(shared)} pictures are in two splits as copies ({next(iter(shared.values()))})"
        if shared
        else ""
    )
