"""Captioned images from a folder with a JSON file or a table, from tar shards, or from the built-in world."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from diptych.config.data import USUAL_LAYOUT, Columns, DataLayout
from diptych.data.sources import cells, formats
from diptych.data.sources.base import Captioned, DataError, NoSplit
from diptych.data.sources.copies import byte_range, same_bytes
from diptych.data.sources.division import Row, divide
from diptych.data.sources.formats import Entry
from diptych.data.sources.image_files import ImageFiles
from diptych.data.sources.paths import APART, Folder, check_layout, data_folders, data_in_json, read_text
from diptych.data.sources.splits import SEVERAL, named_split, requested_split

TABLES = (".csv", ".tsv", ".jsonl")
KNOWN = "dataset*.json (Karpathy), captions_*.json (COCO) or one .csv, .tsv, .jsonl; tars are named by a glob"


class CaptionedFiles(ImageFiles):
    """Captioned images in files of a folder (see `base.Captioned`)."""

    def __init__(
        self,
        root: Path,
        split: str,
        entries: Sequence[Entry],
        min_side: int | None = None,
        division: str = "",
    ):
        super().__init__(root, split, [entry.file for entry in entries], min_side, division)
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def pictures(self) -> Sequence[int]:
        """For each image the first one with the same bytes (see `copies.ListsCopies`)."""
        return same_bytes([byte_range(self.root / file) for file in self.files])

    def captions(self, index: int) -> tuple[str, ...]:
        return self.entries[index].captions

    def where(self, index: int) -> str:
        return f"{self.entries[index].where} ({self.entries[index].file})"


def open_captions(
    spec: str, split: str, layout: DataLayout = USUAL_LAYOUT, *, seed: int = 0, min_side: int | None = None
) -> Captioned:
    """One split of a captioned data set.

    Args:
        spec: a folder with a Karpathy ``dataset_*.json``, a COCO ``captions_*.json`` or a table (CSV, TSV, JSONL), in
        the
            folder itself or in ``annotations/``; such a file itself, or a .json file with a list of a table's rows
            (images are looked up in `layout.images_root`, by default beside it and beside its ``annotations/``: there, in
            ``images/``, or in any folder below); tar shards
            ``shards-{000..003}.tar``; or the built-in world, ``scenes`` or ``scenes:2000`` for 2,000 training images.
        split: "train", "val", "test", or a synonym (see sources/splits.py).
        layout: column names of a table, and the folder of its images.
        seed: a file without a split column or a split in its name is divided 90/5/5 by image, keyed by this.
        min_side: see CaptionedFiles.

    Raises:
        DataError: the data cannot be used; NoSplit: it has nothing in this split.
    """
    split = requested_split(split, spec)
    check_layout(spec, layout)
    if spec.partition(":")[0] == "scenes":
        from diptych.data.synthetic import Scenes

        return Scenes.from_spec(spec, split, seed)
    if spec.endswith(".tar"):
        from diptych.data.webdataset.indexed_shards import CaptionedShards

        return CaptionedShards(spec, split, columns=layout.columns, seed=seed, min_side=min_side)
    path = Path(spec)
    table = choose(path, split, _kinds, "captions", KNOWN) if path.is_dir() else path
    rows, captions, columns = _read(table, layout.columns)
    folder = Folder.of(table, layout.images_root)
    divided = divide(table, rows, folder, split, seed)
    entries = formats.merged((file, row.where, captions(row)) for file, row in divided.rows)
    division = divided.division + (formats.unread(divided.rows[0][1].content, columns, ("caption",)) if columns else "")
    return CaptionedFiles(folder.root, split, entries, min_side, division)


def _read(path: Path, columns: Columns) -> tuple[Iterable[Row], Callable[[Row], Iterable[str]], Columns | None]:
    """Rows of a file of any format, the function that gives the captions of a row, and the columns of a table."""
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; check --data")
    if path.suffix not in (".json", *TABLES):
        raise DataError(f"{path}: {path.suffix or 'no suffix'} is none of .json, {', '.join(TABLES)}, .tar")
    content = data_in_json(read_text(path), path) if path.suffix == ".json" else None
    if content is None or isinstance(content, list):
        return formats.table(path, columns, content), partial(_captions_of, columns), columns
    formats.check_no_columns(path, columns)
    if isinstance(content, dict) and "annotations" in content:
        return formats.coco(content, path), lambda row: row.content, None
    return formats.karpathy(content, path), formats.karpathy_captions, None


def _captions_of(columns: Columns, row: Row) -> tuple[str, ...]:
    """Captions of a table's row."""
    return cells.captions(row.content, formats.heading(row.content, columns, "caption", row.where), row.where)


def _kinds(folder: Path, split: str) -> list[list[Path]]:
    """Files that may contain captions, by decreasing preference of their kind."""
    karpathy, coco = (sorted(inside(folder, pattern)) for pattern in ("dataset*.json", "captions_*.json"))
    return [karpathy, *by_name(coco, split), *by_name(tables_in(folder), split)]


def inside(folder: Path, pattern: str) -> list[Path]:
    """Files that match a pattern in a data set's folder and its subfolders for annotations."""
    return [path for place in data_folders(folder) for path in sorted(place.glob(pattern))]


def tables_in(folder: Path) -> list[Path]:
    """Tables in a data set's folder and its subfolders for annotations."""
    return [path for path in inside(folder, "*") if path.suffix in TABLES]


def by_name(files: Sequence[Path], split: str) -> list[list[Path]]:
    """Candidate files for a split, by preference: named for it; named for none; named for several.

    Files named for no split count only if no file is named for any, so that training data is not divided again.
    Files named for several splits may have a split column.
    """
    names = {path: named_split(path) for path in files}
    unnamed = set(names.values()) <= {None}
    return [[p for p in files if names[p] == named and (named or unnamed)] for named in (split, None, SEVERAL)]


def choose(folder: Path, split: str, kinds: Callable[[Path, str], list[list[Path]]], what: str, known: str) -> Path:
    """The one file in a folder with `what` (for messages) of a split.

    Raises DataError if there are several, or none.
    """
    for files in kinds(folder, split):
        if len(files) == 1:
            return files[0]
        if files:
            names = ", ".join(str(p.relative_to(folder)) for p in files[:5])
            raise DataError(
                f"{folder}: {names} may all contain {what} of {split}; name one of them instead of the folder"
            )
    raise NoSplit(
        f"{folder}: no file with {what} of {split}; expected {known}, in the folder or its {' or '.join(APART)} folder"
    )
