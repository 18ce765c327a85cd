"""Images of one class each: CIFAR's pickles, folders of classes, tables with a label, and the built-in world."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image as Pillow

from diptych.batch import Batch
from diptych.config.data import USUAL_LAYOUT, Columns, DataLayout, ImageSettings
from diptych.config.validation import preview
from diptych.data.images.loading import ImageLoader, file_of, image_loader, stem_of, with_images
from diptych.data.sources.base import DataError, NoSplit
from diptych.data.sources.captions import TABLES, by_name, choose, tables_in
from diptych.data.sources.division import Divided, Row, divide
from diptych.data.sources.formats import check_no_columns, heading, table, unread
from diptych.data.sources.image_files import ImageFiles
from diptych.data.sources.paths import Folder, check_layout, data_in_json, need, read_text
from diptych.data.sources.splits import SPLITS, counted, known_split, requested_split
from diptych.utils.feature_cache import digest
from diptych.utils.rng import generator
from diptych.utils.safe_pickle import NotPlain, read_plain

SIDE = 32
HELD_OUT = 10  # every tenth image of train is val
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
KNOWN = (
    "CIFAR's pickles (meta, or batches.meta), one .csv, .tsv, .jsonl with the columns image and label, or a folder of "
    "images for each class: DIR/CLASS/*.jpg or DIR/train/CLASS/*.jpg"
)


@runtime_checkable
class LabelledImages(Protocol):
    """One split of images with one class each."""

    name: str
    split: str

    def __len__(self) -> int: ...

    def image(self, index: int) -> Pillow.Image: ...

    def label(self, index: int) -> int: ...

    def where(self, index: int) -> str: ...


@runtime_checkable
class ClassifiedImages(LabelledImages, Protocol):
    """One split of images with one of `classes` each. `division`: one line on how the data was divided into splits."""

    division: str

    @property
    def classes(self) -> Sequence[str]: ...


def open_labelled(
    spec: str, split: str, layout: DataLayout = USUAL_LAYOUT, *, seed: int = 0, min_side: int | None = None
) -> ClassifiedImages:
    """One split of a data set of classified images. The classes are those of all its splits.

    Args:
        spec: a folder with CIFAR-100's or CIFAR-10's pickles, a table (CSV, TSV, JSONL with image and label; such a
            file itself, or a .json file with a list of a table's rows), or a folder for each class
            (``DIR/CLASS/*.jpg``, or ``DIR/train/CLASS/*.jpg`` with a folder for each split); or ``scenes``, where the
            class is the kind of the largest object.
        split: "train", "val", "test", or a synonym. Data without splits is divided as in `captions.open_captions`.
        layout: column names of a table, and the folder of its images.
        seed: keys the division.
        min_side: shorter side in pixels to which large JPEGs may be decoded.

    Raises:
        DataError: the data cannot be used; NoSplit: it has nothing in this split.
    """
    split = requested_split(split, spec)
    check_layout(spec, layout)
    if spec.partition(":")[0] == "scenes":
        return ClassifiedScenes(spec, split, seed)
    path = Path(spec)
    if path.is_dir() and (files := next((f for f in (CIFAR100, CIFAR10) if (path / f.meta).is_file()), None)):
        check_no_columns(path, layout.columns)
        return CIFAR(path, split, files)
    if path.is_dir() and not tables_in(path):
        check_no_columns(path, layout.columns)
        return _class_folders(path, split, seed, min_side)
    return _labelled_table(path, split, layout, seed, min_side)


@dataclass(frozen=True)
class CIFARFiles:
    """Names of the files and keys of a CIFAR data set (Krizhevsky 2009)."""

    name: str
    meta: str
    names: bytes
    labels: bytes
    train: tuple[str, ...]
    test: str


CIFAR100 = CIFARFiles("CIFAR-100", "meta", b"fine_label_names", b"fine_labels", ("train",), "test")
CIFAR10 = CIFARFiles(
    "CIFAR-10", "batches.meta", b"label_names", b"labels", tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch"
)


class CIFAR:
    """One split of CIFAR-100 or CIFAR-10 (Krizhevsky 2009): images of 32 x 32 pixels, each of one of `classes`.

    The pickles are parsed without running them (utils/safe_pickle.py).
    Differs: the data sets have no val split, so every tenth image of train is held out as one, together with all its
    copies (the first of them counts); `division` describes it in one line. Raises DataError, and NoSplit for an empty
    split.
    """

    def __init__(self, folder: Path, split: str, files: CIFARFiles = CIFAR100):
        self.name, self.split, self.folder = folder.name, requested_split(split, str(folder)), folder
        names = _read(folder / files.meta, files.names, list, files)
        self.classes = [_text(name, folder / files.meta) for name in names]
        parts = [files.test] if self.split == "test" else list(files.train)
        batches = [self._batch(folder / part, files) for part in parts]
        pixels = np.concatenate([batch[0] for batch in batches])
        self.labels = [label for batch in batches for label in batch[1]]
        self.places = [(part, row) for part, (_, own) in zip(parts, batches, strict=True) for row in range(len(own))]
        splits = ["test"] * len(pixels) if self.split == "test" else _held_out(pixels)
        self.rows = [row for row, own in enumerate(splits) if own == self.split]
        how = "" if self.split == "test" else f", every {HELD_OUT}th image of it as val"
        what = f"file {parts[0]}" if len(parts) == 1 else f"files {parts[0]} to {parts[-1]}"
        self.division = f"{folder.name}: {what}{how}: {counted(splits)}"
        if not self.rows:
            raise NoSplit(f"{folder / parts[0]}: no image in split {split!r} ({self.division}); name another split")
        self.pixels = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)

    def _batch(self, path: Path, files: CIFARFiles) -> tuple[np.ndarray, list[int]]:
        """Pixels and labels of one file. Raises DataError."""
        pixels = _read(path, b"data", np.ndarray, files)
        labels = _read(path, files.labels, list, files)
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * SIDE * SIDE):
            raise DataError(
                f"{path}: expected uint8 pixels of shape ({len(labels)}, {3 * SIDE * SIDE}), got {pixels.dtype} "
                f"{pixels.shape}"
            )
        wrong = [x for x in labels if type(x) is not int or not 0 <= x < len(self.classes)]
        if wrong:
            raise DataError(f"{path}: label {preview(wrong[0])} is none of the {len(self.classes)} classes")
        return pixels, labels

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Pillow.Image:
        return Pillow.fromarray(np.ascontiguousarray(self.pixels[self.rows[index]]))

    def label(self, index: int) -> int:
        return self.labels[self.rows[index]]

    def where(self, index: int) -> str:
        file, row = self.places[self.rows[index]]
        return f"{self.folder / file}, row {row}"


def _held_out(pixels: np.ndarray) -> list[str]:
    """Split of each row of train: val for every tenth image and its copies, by the first row with the same pixels."""
    first: dict[bytes, int] = {}
    places = [first.setdefault(digest(row.tobytes()), i) for i, row in enumerate(pixels)]
    return ["val" if place % HELD_OUT == HELD_OUT - 1 else "train" for place in places]


def _read(path: Path, key: bytes, kind: type, files: CIFARFiles) -> Any:
    """One entry of a pickle. Raises DataError."""
    try:
        record = read_plain(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); name a folder with {files.name}'s {files.meta}, "
            f"{files.train[0]} and {files.test}"
        ) from None
    except NotPlain as error:
        raise DataError(f"{path}: not a pickle of plain values: {error}") from None
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        raise DataError(f"{path}: no {key.decode()} in it; name a folder of {files.name}")
    return value


def _text(name: Any, path: Path) -> str:
    if not isinstance(name, bytes | str):
        raise DataError(f"{path}: expected class names as text, got {type(name).__name__}")
    return name.decode(errors="replace") if isinstance(name, bytes) else name


class ClassifiedFiles(ImageFiles):
    """Images in files of a folder, each of one of `classes`; `labels` are their indices."""

    def __init__(
        self,
        root: Path,
        split: str,
        classes: Sequence[str],
        rows: Sequence[tuple[str, str, int]],
        division: str,
        min_side: int | None = None,
    ):
        super().__init__(root, split, [file for file, _, _ in rows], min_side, division)
        self.classes, self.rows = classes, rows  # rows: file, where, label

    def __len__(self) -> int:
        return len(self.rows)

    def label(self, index: int) -> int:
        return self.rows[index][2]

    def where(self, index: int) -> str:
        file, where, _ = self.rows[index]
        return f"{where} ({file})" if where else str(self.root / file)


def _labelled_table(path: Path, split: str, layout: DataLayout, seed: int, min_side: int | None) -> ClassifiedFiles:
    """One split of a table with the columns image and label."""
    file, columns = path, layout.columns
    if path.is_dir():
        file = choose(path, split, lambda folder, part: by_name(tables_in(folder), part), "labels", KNOWN)
    if not file.is_file():
        raise DataError(f"{file}: no such file or folder; check --data")
    if file.suffix not in (".json", *TABLES):
        raise DataError(f"{file}: {file.suffix or 'no suffix'} is none of .json, {', '.join(TABLES)}; expected {KNOWN}")
    content = data_in_json(read_text(file), file) if file.suffix == ".json" else None
    if content is not None and not isinstance(content, list):
        raise DataError(f"{file}: expected a list of records with an image and a label; correct the file")
    folder = Folder.of(file, layout.images_root)
    rows = [row._replace(content=(row.content, _label(row, columns))) for row in table(file, columns, content)]
    divided = divide(file, rows, folder, split, seed)
    division = divided.division + unread(divided.rows[0][1].content[0], columns, ("label",))
    labels = [row.content[1] for row in rows]
    return _classified(folder.root, split, labels, divided, division, min_side, named=True)


def _label(row: Row, columns: Columns) -> str:
    """The class that a table's row names: a text, or an integer as text. Raises DataError."""
    label = str(need(row.content, heading(row.content, columns, "label", row.where), (str, int), row.where)).strip()
    if not label:
        raise DataError(f"{row.where}: the label is empty; write the class, or drop the row")
    return label


def _class_folders(root: Path, split: str, seed: int, min_side: int | None) -> ClassifiedFiles:
    """One split of images in a folder for each class, which may lie in a folder for each split."""
    rows = list(_rows_of_folders(root))
    if not rows:
        raise DataError(f"{root}: no images in folders of classes; expected {KNOWN}")
    folder = Folder(root)
    labels = [row.content[1] for row in rows]
    divided = divide(root, rows, folder, split, seed, splits_from="the folders of splits", by_name=False)
    return _classified(folder.root, split, labels, divided, divided.division, min_side, named=False)


def _rows_of_folders(root: Path) -> Iterator[Row]:
    """A row for each image in a folder for each class; it names its split if there is a folder for each split."""
    folders = _folders(root)
    parts = [folder for folder in folders if known_split(folder.name) in SPLITS and _folders(folder)]
    if parts and len(parts) < len(folders):
        other = next(folder.name for folder in folders if folder not in parts)
        raise DataError(
            f"{root}: {parts[0].name} is a folder of a split, but {other} is none: move it away, or name the folder "
            f"{parts[0]}"
        )
    for part in parts or [root]:
        for place in _folders(part):
            for file in _images_below(place):
                name = os.path.relpath(file, root)
                yield Row(str(file), name, [name], part.name if parts else None, ("", place.name))


def _folders(root: Path) -> list[Path]:
    """The folders in a folder, in the order of their names, without hidden ones."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images_below(root: Path) -> Iterator[Path]:
    """The image files in a folder and all folders below, also behind links, each folder once."""
    known: set[str] = set()
    for place, folders, files in os.walk(root, followlinks=True):
        again = os.path.realpath(place) in known
        known.add(os.path.realpath(place))
        folders[:] = [] if again else sorted(name for name in folders if not name.startswith("."))
        for name in () if again else sorted(files):
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES):
                yield Path(place, name)


def _classified(
    root: Path,
    split: str,
    labels: Sequence[str],
    divided: Divided,
    division: str,
    min_side: int | None,
    named: bool,
) -> ClassifiedFiles:
    """The images of a division, whose rows have a label as the second part of their content.

    `labels`: of the rows of all splits. `named`: whether the rows have a place in a file.
    """
    numbered = all(label.isdecimal() for label in labels)
    classes = sorted(set(labels), key=(lambda label: (int(label), label)) if numbered else None)
    places = {name: i for i, name in enumerate(classes)}
    rows = [(file, row.where if named else "", places[row.content[1]]) for file, row in divided.rows]
    return ClassifiedFiles(root, split, classes, rows, f"{division}; {len(classes)} classes", min_side)


class ClassifiedScenes:
    """Scenes of the built-in world; the class is the kind of the object with the largest box."""

    def __init__(self, spec: str, split: str, seed: int = 0):
        from diptych.data.synthetic import Scenes
        from diptych.data.synthetic.shapes import KINDS

        self.scenes, self.classes = Scenes.from_spec(spec, split, seed), sorted(KINDS)
        self.name, self.split, self.division = self.scenes.name, split, ""

    def __len__(self) -> int:
        return len(self.scenes)

    def image(self, index: int) -> Pillow.Image:
        return self.scenes.image(index)

    def label(self, index: int) -> int:
        boxes = [(thing.box, thing.kind) for thing in self.scenes.scene(index).things]
        _, kind = max(boxes, key=lambda part: (part[0][2] - part[0][0]) * (part[0][3] - part[0][1]))
        return self.classes.index(kind)

    def where(self, index: int) -> str:
        return self.scenes.where(index)


class OfClasses:
    """The images of a source whose class is one of `classes`; labels are the places among these."""

    def __init__(self, source: ClassifiedImages, classes: Sequence[str]):
        self.source, self.name, self.split = source, source.name, source.split
        self.classes, self.division = classes, source.division
        places = {name: i for i, name in enumerate(classes)}
        self.places = [places.get(name) for name in source.classes]
        labels = [self.places[source.label(i)] for i in range(len(source))]
        self.rows = [(i, label) for i, label in enumerate(labels) if label is not None]

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Pillow.Image:
        return self.source.image(self.rows[index][0])

    def file(self, index: int) -> bytes:
        return file_of(self.source, self.rows[index][0])

    def stem(self, index: int) -> str:
        return stem_of(self.source, self.rows[index][0])

    def label(self, index: int) -> int:
        return self.rows[index][1]

    def where(self, index: int) -> str:
        return self.source.where(self.rows[index][0])


class LabelledExamples:
    """One example per image. Labels: ``class`` int64 ``(b,)``.

    With `mirrored` (in training) images are flipped horizontally with probability 0.5, drawn by (seed, step, id).
    """

    def __init__(self, source: LabelledImages, images: ImageSettings | ImageLoader, mirrored: bool = False):
        self.source, self.loader, self.mirrored = source, image_loader(images), mirrored

    def __len__(self) -> int:
        return len(self.source)

    def length(self, index: int) -> int:
        return 1

    def load(self, index: int, seed: int, step: int) -> tuple[Any, int]:
        image = self.loader.load(self.source, index, partial(generator, seed, step, index, "augment"))
        if self.mirrored and isinstance(image, np.ndarray) and generator(seed, step, index, "mirror").random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
        return image, self.source.label(index)

    def collate(self, loaded: list[tuple[Any, int]], ids: Sequence[int], seed: int, step: int) -> Batch:
        labels = {"class": torch.tensor([label for _, label in loaded])}
        batch = Batch(seed, step, torch.tensor(ids), labels=labels)
        return with_images(batch, self.loader.stack([image for image, _ in loaded]))
