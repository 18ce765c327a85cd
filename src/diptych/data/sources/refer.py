"""Reader of REFER's files: RefCOCO, RefCOCO+ and RefCOCOg (Yu et al., ECCV 2016; Mao et al., CVPR 2016).

``refs(unc).p``, ``refs(google).p`` or ``refs(umd).p`` is a pickle of plain values (read by `utils.safe_pickle`, without
running anything): a list of references, each to an annotation of COCO's ``instances.json`` beside it, with its split
and one or more sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.data.sources.base import Box, DataError, Expression, NoSplit
from diptych.data.sources.cells import corners, text
from diptych.data.sources.paths import Folder, data_in_json, listed, need, read_text
from diptych.data.sources.splits import counted, split_of
from diptych.utils.safe_pickle import NotPlain, read_plain

PICKLES = (".p", ".pkl", ".pickle")
SPLITS = ("testA", "testB")
"""The test sets of RefCOCO and RefCOCO+, of people and of other objects."""
MAX_BYTES = 2**29  # of a file of references; RefCOCO's take 40 to 60 MB
MAX_OPCODES = 50_000_000  # of its pickle; RefCOCO's have some millions

Contents = tuple[Path, str, list[str], list[tuple[str, Expression]], Mapping[int, Sequence[Box]]]
"""Folder of the images, split, image files, expressions with their places, boxes of all objects of each image."""


def refer_files(folder: Path) -> list[Path]:
    """Files of references in a folder."""
    return sorted(path for path in folder.glob("refs(*") if path.suffix in PICKLES)


def read_refer(path: Path, split: str, images_root: str = "") -> Contents:
    """The expressions of a split, one for each sentence, as ViLBERT's official code reads them.

    Images are looked up by name in `images_root`, else in the folder of the file, or the folder that contains it, and
    the folders below.

    Raises:
        DataError: the files cannot be used. NoSplit: they have nothing in this split.
    """
    instances = path.with_name("instances.json")
    if not instances.is_file():
        raise DataError(f"{instances}: missing; put COCO's annotations of the references beside {path.name}")
    references = [*listed(_unpickled(path), path)]
    splits = [split_of(need(row, "split", str, where), where, SPLITS) for where, row in references]
    chosen = [row for row, own in zip(references, splits, strict=True) if own == split]
    if not chosen:
        raise NoSplit(f"{path}: no references in split {split!r} ({counted(splits)}); name another split")
    content = data_in_json(read_text(instances), instances)
    names, boxes = _image_names(content, instances), _boxes(content, instances)
    places: dict[int, int] = {}
    expressions: list[tuple[str, Expression]] = []
    for where, row in chosen:
        number, note = need(row, "image_id", int, where), need(row, "ann_id", int, where)
        if number not in names or note not in boxes.get(number, {}):
            raise DataError(f"{where}: {instances.name} has no image {number} with an annotation {note}; add it")
        place = places.setdefault(number, len(places))
        for id, sentence in _sentences(row, where):
            expressions.append((where, Expression(id, place, sentence, boxes[number][note])))
    folder = _image_folder(path, images_root, names[next(iter(places))])
    files = [folder.find([names[number]], f"{instances}, image {number}") for number in places]
    objects = {place: tuple(boxes[number].values()) for number, place in places.items()}
    return folder.root, split, files, expressions, objects


def _unpickled(path: Path) -> Any:
    """The list in a file of references. Raises DataError."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(f"{path}: {size} bytes, more than {MAX_BYTES}; is this a file of references?")
    try:
        content = read_plain(path.read_bytes(), max_opcodes=MAX_OPCODES)
    except NotPlain as error:
        raise DataError(f"{path}: not a pickle of plain values: {error}") from None
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of references, got {type(content).__name__}")
    return content


def _image_folder(path: Path, images_root: str, first: str) -> Folder:
    """The folder that has the images, or has them in folders below; that of the file if none has."""
    own = Folder.of(path, images_root)
    if images_root or own.seek([first]) is not None:
        return own
    above = Folder(own.root.parent)
    return above if above.seek([first]) is not None else own


def _image_names(content: Any, path: Path) -> dict[int, str]:
    """File names of COCO's images, by number."""
    rows = ((f"{path}, images[{i}]", row) for i, row in enumerate(need(content, "images", list, str(path))))
    return {need(row, "id", int, where): need(row, "file_name", str, where) for where, row in rows}


def _boxes(content: Any, path: Path) -> dict[int, dict[int, Box]]:
    """Boxes of COCO's annotations, by the numbers of the image and of the annotation; x, y, width, height there."""
    boxes: dict[int, dict[int, Box]] = {}
    for i, row in enumerate(need(content, "annotations", list, str(path))):
        where = f"{path}, annotations[{i}]"
        x, y, width, height = corners(need(row, "bbox", list, where), f"{where}, 'bbox'")
        of_image = boxes.setdefault(need(row, "image_id", int, where), {})
        of_image[need(row, "id", int, where)] = (x, y, x + width, y + height)
    return boxes


def _sentences(row: dict[str, Any], where: str) -> Iterator[tuple[int, str]]:
    """Number and text of each sentence of a reference."""
    for i, sentence in enumerate(need(row, "sentences", list, where)):
        place = f"{where}, sentences[{i}]"
        key = "raw" if isinstance(sentence, dict) and "raw" in sentence else "sent"
        yield need(sentence, "sent_id", int, place), text(sentence, key, place)
