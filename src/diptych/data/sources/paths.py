"""Look-up of files that a data set names, never outside its folder, and reading of text files with located errors."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from diptych.config.spelling import suggest_name
from diptych.data.sources.base import DataError
from diptych.utils.io import InvalidJSON, decode_json

MAX_FILE_BYTES = 2**63  # integers from here on are rejected everywhere in data files
_TYPE_NAMES = {str: "a text", int: "an integer", list: "a list", dict: "a record"}
APART = ("annotations", "questions")
"""Subfolders (in upper or lower case) in which COCO and VQA v2 keep their JSON files, beside the image folders."""


class Folder:
    """A folder whose files are named by untrusted text. Directory listings are read once, so look-ups are cheap.

    `also`: a subfolder that is searched first.
    """

    def __init__(self, root: str | Path, also: str = ""):
        self.root, self.also = Path(root).resolve(), also
        self._listings: dict[str, dict[str, bool]] = {}

    @classmethod
    def of(cls, file: Path) -> Folder:
        """The image folder of a data file: the file's own, or its parent if that is one of APART."""
        own = Path(os.path.abspath(file.parent))
        return cls(own.parent, own.name) if own.name.lower() in APART else cls(own)

    def find(self, names: Iterable[str], where: str) -> str:
        """The first of `names` (relative paths) that is a file, normalised (``./a.jpg`` becomes ``a.jpg``).

        `where` is the row that names it. Raises DataError.
        """
        names = list(names)
        for name in names:
            if "\0" in name or not _printable(name):
                raise DataError(f"{where}: {name!r} is not a valid file name; correct the row")
            if _is_outside(name):
                raise DataError(f"{where}: {name!r} leads outside {self.root}; name images relative to the folder")
        for name in self._candidates(names):
            if (file := self._file(name)) is not None:
                if not self._is_inside(file):
                    raise DataError(
                        f"{where}: {name!r} is a link that leads outside {self.root}; copy the file instead"
                    )
                return file
        near = suggest_name(os.path.basename(names[0]), self._listing(os.path.dirname(names[-1])))
        raise DataError(f"{where}: image {names[0]!r} is missing under {self.root}: add the file or drop the row{near}")

    def seek(self, names: Iterable[str]) -> str | None:
        """Like `find`, but None if that raises."""
        names = list(names)
        if any("\0" in name or not _printable(name) or _is_outside(name) for name in names):
            return None
        file = next(filter(None, map(self._file, self._candidates(names))), None)
        return file if file is not None and self._is_inside(file) else None

    def _candidates(self, names: Sequence[str]) -> list[str]:
        return [*(f"{self.also}/{name}" for name in names), *names] if self.also else list(names)

    def _file(self, name: str) -> str | None:
        """Normalised relative path of a file; None if it does not exist."""
        head, tail = os.path.split(os.path.normpath(name))
        return os.path.join(head, tail) if tail in self._listing(head) else None

    def _is_inside(self, file: str) -> bool:
        """Whether a file is in the folder rather than a link out of it."""
        head, tail = os.path.split(file)
        return not self._listing(head)[tail] or self._within(self.root / file)

    def files(self, subfolder: str) -> list[str]:
        """Sorted names of the files in a subfolder; empty if it does not exist."""
        return sorted(self._listing(subfolder))

    def _listing(self, head: str) -> dict[str, bool]:
        """Files of a subfolder, and whether each is a link; empty if it does not exist."""
        if head not in self._listings:
            place = self.root / head
            usable = place.is_dir() and self._within(place)
            entries = list(os.scandir(place)) if usable else []
            self._listings[head] = {e.name: e.is_symlink() for e in entries if e.is_file()}
        return self._listings[head]

    def _within(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.root)


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
