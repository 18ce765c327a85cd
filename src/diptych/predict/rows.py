"""JSON Lines files of predictions: appended to as rows come, and continued after an interruption."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diptych.config.validation import preview
from diptych.inference.saved_model import RunError
from diptych.utils.io import DamagedFile, atomic_write, naming_write_errors, parse_json, read_json
from diptych.utils.lock import locked
from diptych.utils.terminal import echo

Row = dict[str, Any]
_ADVICE = "repair the file, or give another --out"


@runtime_checkable
class RowWriter(Protocol):
    """Where rows go."""

    @property
    def done(self) -> Counter[str]:
        """How many items (images, texts) of each name have their rows already, without an error."""
        ...

    @property
    def failed(self) -> Counter[str]:
        """How many items of each name have rows with an "error"."""
        ...

    def write(self, rows: Sequence[Row]) -> None:
        """Writes all rows of one or several items, whole lines, and flushes them."""
        ...

    def arrange(self, names: Sequence[str]) -> None:
        """Puts the rows in the order of `names`, without the rows with an error that later ones replace."""
        ...


class PrintedRows:
    """Rows printed to standard output."""

    @property
    def done(self) -> Counter[str]:
        return Counter()

    @property
    def failed(self) -> Counter[str]:
        return Counter()

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            echo(to_line(row))

    def arrange(self, names: Sequence[str]) -> None:
        """Printed rows stay as they are."""


@dataclass(frozen=True)
class _Item:
    """The place of an item's rows in a file, in bytes, and whether one of them has an "error"."""

    name: str
    start: int
    end: int
    failed: bool


class RowFile:
    """Rows appended to a JSON Lines file, with the settings that they depend on in ``FILE.settings.json``.

    Rows of the same settings that are there already are kept, but for an incomplete last item. Nothing is written
    before the first rows are.

    Args:
        path: the file.
        settings: what the rows depend on: the command, the model and the options.
        key: the field with the name of a row's item.
        each: rows of each item.

    Raises:
        RunError: the file is none that such a command wrote, or its rows have other settings.
        DamagedFile: a line is not such a row.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], key: str = "image", each: int = 1):
        self.path, self.settings, self.key, self.each = path, settings, key, each
        self._check_settings()
        items = list(self._items())
        self._done, self._failed = (Counter(item.name for item in items if item.failed == failed) for failed in (0, 1))
        self._end = items[-1].end if items else 0
        self._file: FileIO | None = None

    @property
    def done(self) -> Counter[str]:
        return self._done

    @property
    def failed(self) -> Counter[str]:
        return self._failed

    def write(self, rows: Sequence[Row]) -> None:
        data = memoryview("".join(f"{to_line(row)}\n" for row in rows).encode())
        end, written = self._end + len(data), 0
        with naming_write_errors(self.path):
            file = self._opened()
            while written < len(data):  # unbuffered, so that nothing is left to write when the file is closed
                written += file.write(data[written:])
        self._end = end

    def arrange(self, names: Sequence[str]) -> None:
        """Puts the items in the order of `names`, after those that are not in `names`, which keep their order.

        The rows with an error are removed of items that have later ones. Raises WriteError; the file is then unchanged.
        """
        self.close()
        items = list(self._items())
        arranged = _arranged(items, names)
        if arranged == items:
            return
        with self.path.open("rb") as old, atomic_write(self.path) as partial, partial.open("wb") as new:
            for item in arranged:
                old.seek(item.start)
                new.write(old.read(item.end - item.start))
        self._end = sum(item.end - item.start for item in arranged)

    def close(self) -> None:
        """Closes the file; removes the last lines if their write was interrupted."""
        if self._file is not None:
            with self._file as file:
                file.truncate(self._end)
            self._file = None

    def rows(self) -> Iterator[tuple[Row, int]]:
        """The rows of the file and the length of each in bytes, without an incomplete last line. Raises DamagedFile."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield parse_json(line, {self.key: str}, f"{self.path}, line {number}", _ADVICE), len(line)

    def _opened(self) -> FileIO:
        if self._file is None:
            if not self.path.exists():
                with atomic_write(settings_file(self.path)) as partial:
                    partial.write_text(json.dumps(self.settings, indent=1))
            self._file = self.path.open("ab", buffering=0)
            self._file.truncate(self._end)
        return self._file

    def _check_settings(self) -> None:
        beside = settings_file(self.path)
        if beside.exists():
            saved = read_json(beside, {"command": str, "model": str}, _ADVICE)
            if self.path.exists():
                self._compare(saved)
        else:
            refuse_unknown(self.path, beside)

    def _compare(self, saved: Mapping[str, Any]) -> None:
        settings = json.loads(json.dumps(self.settings))
        for name in sorted(saved.keys() | settings.keys()):
            if saved.get(name) != settings.get(name):
                before, now = (preview(values.get(name)) for values in (saved, settings))
                what = "of another model" if name == "model" else f"with {name} = {before}, not {now}"
                raise RunError(f"{self.path} has rows {what}: give the same again, or another --out")

    def _items(self) -> Iterator[_Item]:
        """The whole items of the file, in its order. Raises DamagedFile if one has fewer rows than it must have."""
        item, start, end = list[Row](), 0, 0
        for row, length in self.rows():
            item.append(row)
            end += length
            if row[self.key] != item[0][self.key]:
                raise DamagedFile(
                    f"{self.path}: expected {self.each} rows of {item[0][self.key]!r}, got {len(item) - 1}; {_ADVICE}"
                )
            if len(item) == self.each:
                yield _Item(row[self.key], start, end, any("error" in row for row in item))
                item, start = [], end


def _arranged(items: Sequence[_Item], names: Sequence[str]) -> list[_Item]:
    """The items in the order of `names`: of each name those without an error first, then the latest with one.

    Items of other names, and a surplus without an error, come before them; a surplus with an error is left out.
    """
    by_name = defaultdict[str, list[_Item]](list)
    for item in items:
        by_name[item.name].append(item)
    for name in set(names):
        by_name[name].sort(key=lambda item: (item.failed, -item.start if item.failed else item.start))
    placed = [by_name[name].pop(0) for name in names if by_name[name]]
    known = set(names)
    others = [item for of_name in by_name.values() for item in of_name if not (item.failed and item.name in known)]
    return sorted(others, key=lambda item: item.start) + placed


def to_line(row: Row) -> str:
    """A row as one line of ASCII, so that no name in it can break the line or act on a terminal; NaN becomes null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite, allow_nan=False)


@contextmanager
def open_rows(out: str, settings: Mapping[str, Any], key: str = "image", each: int = 1) -> Iterator[RowWriter]:
    """The rows of the file `out`, locked; printed rows if it is "". See RowFile. Raises InUse, too."""
    if not out:
        yield PrintedRows()
        return
    path = Path(out)
    if path.is_dir():
        raise RunError(f"--out {path} is a folder; give a file in it, such as {path / 'rows.jsonl'}")
    with locked(path.parent, path.name), closing(RowFile(path, settings, key, each)) as rows:
        yield rows


def refuse_unknown(path: Path, beside: Path) -> None:
    """Raises RunError if a file exists without the one beside it that the commands write with it."""
    if path.exists() and not beside.exists():
        raise RunError(
            f"{path} exists, and was not written by this command (there is no {beside.name}): give another --out, or "
            "remove it"
        )


def settings_file(path: Path) -> Path:
    """The file with the settings that the rows of `path` were made with."""
    return path.with_name(f"{path.name}.settings.json")


def left_to_do(names: Sequence[str], rows: RowWriter) -> list[int]:
    """Indices of the items that have no rows yet, or rows with an error: what could not be read may be repaired.

    A name that occurs several times has rows for each.
    """
    done, left = Counter(rows.done), []
    for i, name in enumerate(names):
        if done[name]:
            done[name] -= 1
        else:
            left.append(i)
    return left


@contextmanager
def progress_bar(what: str, total: int, completed: int, printed: bool) -> Iterator[Callable[[int], None]]:
    """A bar with the time left on standard error, if that is a terminal; yields a function that advances it.

    `printed`: the rows go to standard output; if that is a terminal too, they take the bar's place.
    """
    console = Console(stderr=True)
    shown = console.is_terminal and not (printed and sys.stdout.isatty())
    columns = TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn()
    # rich would print to its own console, which is standard error, what goes to standard output
    with Progress(*columns, console=console, disable=not shown, redirect_stdout=False) as progress:
        task = progress.add_task(what, total=total, completed=completed)
        yield lambda number: progress.advance(task, number)
