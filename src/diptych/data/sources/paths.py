"""Look-up of files that a data set names, never outside its folder, and reading of text files with located errors."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from diptych.config.data import USUAL_LAYOUT, DataLayout
from diptych.config.spelling import suggest_name
from diptych.data.sources.base import DataError
from diptych.utils.io import InvalidJSON, decode_json

MAX_FILE_BYTES = 2**63  # integers from here on are rejected everywhere in data files
MAX_BELOW = 500_000  # files in folders below that are looked up by their last name
MAX_COMPARED = 10_000  # different names from which a misspelt one is suggested
_TYPE_NAMES = {str: "a text", int: "an integer", list: "a list", dict: "a record"}
APART = ("annotations", "questions")
"""Subfolders (in upper or lower case) in which COCO and VQA v2 keep their JSON files, beside the image folders."""


class Folder:
    """A folder whose files are named by untrusted text. Directory listings are read once, so look-ups are cheap.

    A name leads to a file of the folder, or of a folder below it if there is only one such file. Links are followed,
    also out of the folder: the person who owns the folder made them, not the text (docs/decisions/0020).

    `also`: a subfolder that is searched first.
    """

    def __init__(self, root: str | Path, also: str = ""):
        self.root, self.also = Path(root).resolve(), also
        self._given_root = os.path.abspath(root)  # as absolute names may begin with it, where it is a link
        self._listings: dict[str, dict[str, bool]] = {}
        self._outside: dict[str, bool] = {}  # whether links lead to a subfolder outside

    @classmethod
    def of(cls, file: Path, images_root: str = "") -> Folder:
        """The image folder of a data file: `images_root`, or the file's own, or its parent if that is one of APART.

        Raises DataError if `images_root` is not a folder.
        """
        if images_root:
            check_images_root(images_root)
            return cls(images_root)
        own = Path(os.path.abspath(file.parent))
        return cls(own.parent, own.name) if own.name.lower() in APART else cls(own)

    def find(self, names: Iterable[str], where: str) -> str:
        """The first of `names` that is a file, normalised and relative to the folder (``./a.jpg`` becomes ``a.jpg``).

        `where` is the row that names it. Raises DataError.
        """
        names = [self._relative(name, where) for name in names]
        files = self._files(names)
        if len(files) == 1:
            return files[0]
        if files:
            raise DataError(
                f"{where}: {names[0]!r} may be {files[0]!r} or {files[1]!r} of {self.root}: write more of the path"
            )
        listed = [*self._listing(os.path.dirname(names[-1])), *(self._below if len(self._below) < MAX_COMPARED else ())]
        near = suggest_name(os.path.basename(names[0]), listed)
        raise DataError(
            f"{where}: image {names[0]!r} is missing under {self.root}: add the file, drop the row, or give "
            f"--images_root, the folder of the images{near}"
        )

    def seek(self, names: Iterable[str]) -> str | None:
        """Like `find`, but None if that raises."""
        try:
            files = self._files([self._relative(name, "") for name in names])
        except DataError:
            return None
        return files[0] if len(files) == 1 else None

    def linked_out(self, file: str) -> bool:
        """Whether a file lies outside the folder, and a link leads to it. Reads links only."""
        head, tail = os.path.split(file)
        if self._listing(head)[tail]:
            return not self._within(file)
        if head not in self._outside:
            self._outside[head] = not self._within(head)
        return self._outside[head]

    def _within(self, name: str) -> bool:
        return (self.root / name).resolve().is_relative_to(self.root)

    def files(self, subfolder: str) -> list[str]:
        """Sorted names of the files in a subfolder; empty if it does not exist."""
        return sorted(self._listing(subfolder))

    def _relative(self, name: str, where: str) -> str:
        """A name relative to the folder. Raises DataError for one that leads out of it, or is no file name."""
        if "\0" in name or not _printable(name):
            raise DataError(f"{where}: {name!r} is not a valid file name; correct the row")
        for root in (self._given_root, str(self.root)) if os.path.isabs(name) else ():
            if os.path.normpath(name).startswith(os.path.join(root, "")):
                return os.path.relpath(name, root)
        if _is_outside(name):
            raise DataError(
                f"{where}: {name!r} leads outside {self.root}; name images relative to the folder, or give "
                "--images_root, a folder that all of them lie in"
            )
        return name

    def _files(self, names: Sequence[str]) -> list[str]:
        """The file that the names lead to; several if it is not clear which; none if there is none."""
        places = [*(f"{self.also}/{name}" for name in names), *names] if self.also else names
        for head, tail in (os.path.split(os.path.normpath(place)) for place in places):
            if tail in self._listing(head):
                return [os.path.join(head, tail)]
        for name in map(os.path.normpath, names):
            ending = os.path.join("", *name.split(os.sep))
            below = [file for file in self._below.get(os.path.basename(name), ()) if f"/{file}".endswith(f"/{ending}")]
            if below:
                distinct = {os.path.realpath(self.root / file): file for file in reversed(below)}
                return sorted(distinct.values())
        return []

    @cached_property
    def _below(self) -> dict[str, list[str]]:
        """The files in all folders below by their last name. Hidden folders, and what is beyond MAX_BELOW, are left out."""
        found: dict[str, list[str]] = {}
        seen: set[tuple[int, int]] = set()
        number = 0
        for place, folders, files in os.walk(self.root, followlinks=True):
            status = os.stat(place)
            again = (status.st_dev, status.st_ino) in seen  # a link leads here too
            seen.add((status.st_dev, status.st_ino))
            folders[:] = [] if again else sorted(name for name in folders if not name.startswith("."))
            for name in () if again else sorted(files):
                if number == MAX_BELOW:
                    return found
                number += 1
                relative = os.path.relpath(os.path.join(place, name), self.root)
                if os.path.isfile(os.path.join(place, name)):
                    found.setdefault(name, []).append(relative)
        return found

    def _listing(self, head: str) -> dict[str, bool]:
        """Files of a subfolder, and whether each is a link; empty if it does not exist."""
        if head not in self._listings:
            place = self.root / head
            entries = list(os.scandir(place)) if place.is_dir() else []
            self._listings[head] = {e.name: e.is_symlink() for e in entries if e.is_file()}
        return self._listings[head]


def check_layout(spec: str, layout: DataLayout) -> None:
    """Raises DataError for a layout that the data have not, or a folder of images that does not exist."""
    tars, scenes = spec.endswith(".tar"), spec.partition(":")[0] == "scenes"
    if layout.images_root and (tars or scenes):
        raise DataError(f"--images_root is for files that name images, and {spec} contains them: leave it out")
    if layout.columns != USUAL_LAYOUT.columns and scenes:
        raise DataError(f"--columns is for tables, and {spec} is none: leave it out")
    if layout.images_root:
        check_images_root(layout.images_root)


def check_images_root(images_root: str) -> None:
    """Raises DataError unless `images_root` is a folder."""
    if not Path(images_root).is_dir():
        raise DataError(f"{images_root}: no such folder; check --images_root")


def data_folders(root: Path) -> list[Path]:
    """Folders that may contain a data set's own files: its folder, and its subfolders among APART."""
    return [root, *sorted(p for p in root.iterdir() if p.name.lower() in APART and p.is_dir())]


def _is_outside(name: str) -> bool:
    """Whether a path is absolute or contains '..'."""
    return os.path.isabs(name) or ".." in name.replace("\\", "/").split("/")


def _printable(name: str) -> bool:
    """Whether the file system can take a name (not empty, no lone surrogates)."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def read_text(path: Path) -> str:
    """Text of a UTF-8 file. Raises DataError with the line of the first invalid byte."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte {data[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        ) from None


def data_in_json(text: str, path: Path, line: int = 1) -> Any:
    """Value of JSON that starts at `line` of `path`. Raises DataError with the line of the first error."""
    try:
        return decode_json(text)
    except InvalidJSON as error:
        column = f", column {error.column}" if error.column else ""
        at = f"{path}, line {line + error.line - 1}{column}"
        raise DataError(f"{at}: not JSON ({error}); repair the file") from None


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """``(where, row)`` of each row of a .csv, .tsv or .jsonl file. Raises DataError."""
    text = read_text(path)
    if path.suffix == ".jsonl":
        for line, row in enumerate(text.split("\n"), 1):
            if row.strip():
                value = data_in_json(row, path, line)
                if not isinstance(value, dict):
                    raise DataError(f"{path}, line {line}: expected a record, got {kind_of(value)}; repair the row")
                yield f"{path}, line {line}", value
        return
    table = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    try:
        header = next(filter(None, table), [])
        _refuse_other_separator(path, table.line_num, header)
        if len(set(header)) < len(header):
            raise DataError(f"{path}, line 1: two columns have the same name in {header}; rename one")
        for row in table:
            where = f"{path}, line {table.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{where}: expected {len(header)} fields, got {len(row)}; quote the field or repair the row"
                )
            yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}: {error}; repair the row") from None


def listed(rows: Sequence[Any], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """``(where, row)`` of each row of a .json file with a list of records. Raises DataError."""
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}, [{i}]: expected a record, got {kind_of(row)}; repair the row")
        yield f"{path}, [{i}]", row


def kind_of(value: Any) -> str:
    """Name of a JSON value's type, for messages."""
    if type(value) is int:
        return "an integer" if abs(value) < MAX_FILE_BYTES else "a number of more than 64 bits"
    kinds = {bool: "true or false", float: "a decimal number", list: "a list", dict: "a record", type(None): "null"}
    return kinds.get(type(value), "a text" if isinstance(value, str) else type(value).__name__)


def _refuse_other_separator(path: Path, line: int, header: list[str]) -> None:
    """Raises DataError for a header of one column that contains another separator."""
    own = "\t" if path.suffix == ".tsv" else ","
    if len(header) == 1 and (mark := next((mark for mark in "\t;|," if mark != own and mark in header[0]), None)):
        raise DataError(
            f"{path}, line {line}: {header[0]!r} is one column: expected fields separated by {own!r} in {path.suffix}, "
            f"got {mark!r}; save it with {own!r}{', or rename it to .tsv' if mark == chr(9) else ''}"
        )


def need(row: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """``row[key]``, which must be of type `kind`. Raises DataError, which names the most similar key."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a record with {key!r}, got {kind_of(row)}; correct it")
    if key not in row:
        near = suggest_name(key, (k for k in row if isinstance(k, str)))
        raise DataError(f"{where}: no {key!r} among {sorted(row)[:12]}: rename the column or key{near}")
    if not isinstance(row[key], kinds) or isinstance(row[key], bool):
        expected = " or ".join(_TYPE_NAMES.get(k, k.__name__) for k in kinds)
        raise DataError(f"{where}, {key!r}: expected {expected}, got {kind_of(row[key])}; correct it")
    if isinstance(row[key], int) and abs(row[key]) >= MAX_FILE_BYTES:
        raise DataError(f"{where}, {key!r}: a number of more than 64 bits; renumber")
    return row[key]
