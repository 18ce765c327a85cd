"""Referring expressions with boxes: REFER's files, tables (Flickr30k Entities as JSON lines), the built-in world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from diptych.config.data import USUAL_LAYOUT, Columns, DataLayout
from diptych.config.tasks import Grounding
from diptych.data.images.decode import upright_size
from diptych.data.sources.base import Box, DataError, Expression, Grounded
from diptych.data.sources.captions import TABLES, by_name, choose, tables_in
from diptych.data.sources.cells import box as box_in
from diptych.data.sources.cells import texts
from diptych.data.sources.division import divide
from diptych.data.sources.formats import check_no_columns, heading, table, unread
from diptych.data.sources.image_files import ImageFiles
from diptych.data.sources.paths import Folder, check_layout, data_in_json, read_rows, read_text
from diptych.data.sources.refer import PICKLES, read_refer, refer_files
from diptych.data.sources.splits import requested_split

KNOWN = "refs(*).p beside instances.json (REFER), or one .csv, .tsv, .jsonl with the columns"
CORNERS = "x1 y1 x2 y2"
"""Names of four columns with a box, where there is none of a whole box."""


class GroundedFiles(ImageFiles):
    """Referring expressions of images in files of a folder (see `base.Grounded`).

    Args:
        expressions: each with its row.
        objects: the boxes of all annotated objects of each image.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        files: Sequence[str],
        expressions: Sequence[tuple[str, Expression]],
        objects: Mapping[int, Sequence[Box]],
        min_side: int | None = None,
        division: str = "",
    ):
        super().__init__(root, split, files, min_side, division)
        self.expressions, self._objects = expressions, objects
        self.size = lru_cache(None)(self._size)

    def __len__(self) -> int:
        return len(self.expressions)

    def __reduce__(self) -> tuple[Any, ...]:  # for data workers that are not forked: the cache of sizes stays here
        arguments = self.root, self.split, self.files, self.expressions, self._objects, self.min_side, self.division
        return GroundedFiles, arguments

    def expression(self, index: int) -> Expression:
        return self.expressions[index][1]

    def objects(self, image: int) -> Sequence[Box]:
        return self._objects.get(image, ())

    def _size(self, image: int) -> tuple[int, int]:
        """Width and height of an upright image. Raises BadSample."""
        return upright_size(self.file(image), str(self.root / self.files[image]))

    def where(self, index: int) -> str:
        where, expression = self.expressions[index]
        return f"{where} ({self.files[expression.image]})"


def open_expressions(
    spec: str, split: str, layout: DataLayout = USUAL_LAYOUT, *, seed: int = 0, min_side: int | None = None
) -> Grounded:
    """One split of a data set of referring expressions.

    Args:
        spec: a folder with REFER's ``refs(*).p`` and ``instances.json``, or with a table (CSV, TSV, JSONL with image,
            phrase, box); such a file itself, or a .json file with a list of a table's rows; or ``scenes``, as for
            captions.
        split: "train", "val" or "test"; of REFER also "testA" or "testB". Tables without splits are divided as in
            `captions.open_captions`.
        layout: column names of a table, and the folder of the images.
        seed: keys the division.
        min_side: shorter side in pixels to which large JPEGs may be decoded.

    Raises:
        DataError: the data cannot be used; NoSplit: it has nothing in this split.
    """
    split = requested_split(split, spec, Grounding.splits)
    check_layout(spec, layout)
    if spec.partition(":")[0] == "scenes":
        from diptych.data.synthetic import SceneExpressions, Scenes

        return SceneExpressions(Scenes.from_spec(spec, split, seed))
    path = Path(spec)
    file = _chosen(path, split, layout.columns) if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file}: no such file or folder; check --data")
    if file.suffix in PICKLES:
        check_no_columns(file, layout.columns)
        return GroundedFiles(*read_refer(file, split, layout.images_root), min_side=min_side)
    if file.suffix not in (".json", *TABLES):
        kinds = ", ".join((*PICKLES, ".json", *TABLES))
        raise DataError(f"{file}: {file.suffix or 'no suffix'} is none of {kinds}; expected {KNOWN} image, phrase, box")
    return _of_table(file, split, layout, seed, min_side)


def _of_table(file: Path, split: str, layout: DataLayout, seed: int, min_side: int | None) -> GroundedFiles:
    """The expressions of a table: a row for each, with image, phrase, box and, if it has them, kinds."""
    columns, folder = layout.columns, Folder.of(file, layout.images_root)
    content = data_in_json(read_text(file), file) if file.suffix == ".json" else None
    if content is not None and not isinstance(content, list):
        raise DataError(f"{file}: expected a list of rows with image, phrase, box; or name REFER's refs(*).p")
    divided = divide(file, table(file, columns, content), folder, split, seed)
    places: dict[str, int] = {}
    expressions: list[tuple[str, Expression]] = []
    objects: dict[int, dict[Box, None]] = {}
    for i, (image, row) in enumerate(divided.rows):
        place, cells, where = places.setdefault(image, len(places)), row.content, row.where
        phrase = cells[heading(cells, columns, "phrase", where)]
        box = box_in(cells, _box_columns(cells, columns, where), where)
        kinds = texts(cells, "kinds", where) if "kinds" in cells else ()
        expressions.append((where, Expression(i, place, texts({"phrase": phrase}, "phrase", where)[0], box, kinds)))
        objects.setdefault(place, {})[box] = None
    first = divided.rows[0][1].content
    read = ("phrase", "kinds", *_box_columns(first, columns, ""))
    division = divided.division + unread(first, columns, read)
    boxes = {place: tuple(of_image) for place, of_image in objects.items()}
    return GroundedFiles(folder.root, split, list(places), expressions, boxes, min_side, division)


def _box_columns(cells: Mapping[str, Any], columns: Columns, where: str) -> tuple[str, ...]:
    """The keys of a row with its box: one, or four with a corner's coordinate each.

    ``--columns box=left top right bottom`` names four.
    """
    named = (
        columns.box.split() if columns.box.count(" ") == 3 else [] if columns.box != Columns.box else CORNERS.split()
    )
    if named and all(name in cells for name in named):
        return tuple(named)
    if columns.box == Columns.box and "boxes" in cells:
        return ("boxes",)
    return (heading(cells, columns, "box", where),)


def _chosen(folder: Path, split: str, columns: Columns) -> Path:
    """The file in a folder with its referring expressions: REFER's, else a table. Raises DataError."""
    tables = [path for path in tables_in(folder) if _has_phrases(path, columns)]

    def kinds(_: Path, split: str) -> list[list[Path]]:
        """Files that may contain expressions, by decreasing preference of their kind."""
        return [refer_files(folder), *by_name(tables, split)]

    known = f"{KNOWN} {columns.image}, {columns.phrase}, {columns.box}; give --data a folder that has them"
    return choose(folder, split, kinds, "referring expressions", known)


def _has_phrases(table: Path, columns: Columns) -> bool:
    """Whether a table's first row has a phrase; True for unreadable tables, whose error comes later."""
    try:
        return all(columns.phrase in {key.strip().lower() for key in row} for _, row in islice(read_rows(table), 1))
    except DataError:
        return True
