"""Readers of published detector features: a table (TSV), one .npz per image, or an LMDB.

- TSV without a header, as bottom-up attention writes it: image_id, image_w, image_h, num_boxes, boxes, features; or
  LXMERT's ten columns, with objects and attributes in between. Arrays are float32 in base64.
- .npz: features (n × f) with boxes (n × 4, pixels), image_w and image_h; or UNITER's features with norm_bb (shares) and
  soft_labels; or bottom-up-attention.pytorch's x (n × f, or OpenVQA's f × n) with bbox, image_w and image_h. The file's
  stem is the image's id.
- LMDB of pickled dictionaries, as in ViLBERT, 12-in-1 and VOLTA (regions/lmdb.py; extra `lmdb`).

.npy files of dictionaries are rejected, because reading them can run code: convert them. UNITER's LMDB contains the
same .npz files that are read here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from diptych.data.regions.arrays import MAX_REGIONS, MAX_ROW, DetectedImage, checked, floats, positive_integer, shares
from diptych.data.regions.lmdb import RegionDatabase
from diptych.data.sources.base import BadSample, DataError
from diptych.utils.safe_pickle import NotPlain, read_npz

_DETECTIONS = ("objects_id", "objects_conf", "attrs_id", "attrs_conf")
COLUMNS = {
    6: ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
    10: ("image_id", "image_h", "image_w", *_DETECTIONS, "num_boxes", "boxes", "features"),
}
CONVERT = "if you trust it, convert it to .npz (features, boxes, image_w, image_h)"


@runtime_checkable
class DetectedRegions(Protocol):
    """Random access to regions by image id. Cheap to open: only the position of each image is kept in memory."""

    def __len__(self) -> int: ...

    def __contains__(self, image: str) -> bool: ...

    def load(self, image: str) -> DetectedImage:
        """Regions of one image. Raises KeyError for an unknown image, BadSample for unusable regions."""
        ...


def open_regions(path: Path) -> DetectedRegions:
    """Regions in a .tsv, a folder of .npz, or an LMDB. Raises DataError.

    To load them instead of pixels: ``PairExamples(source, tokenizer, RegionLoader(open_regions(path)))``
    (regions/frozen_features.py).
    """
    if path.suffix in (".pkl", ".npy"):
        raise DataError(f"{path}: pickles can run code and are rejected; {CONVERT}")
    if (path / "data.mdb").is_file() or (path.suffix == ".lmdb" and path.is_file()):
        return RegionDatabase(path)
    if path.suffix == ".tsv" and path.is_file():
        return RegionTable(path)
    if path.is_dir():
        return RegionFolder(path)
    raise DataError(f"{path}: expected a .tsv, a folder of .npz, or an LMDB; check the path")


class RegionTable:
    """Regions in a TSV, whose rows are indexed once and read on demand. Raises DataError."""

    def __init__(self, path: Path):
        self.path = path
        self._rows: dict[str, tuple[int, int]] = {}  # image id: row number, and byte at which it begins
        with path.open("rb") as file:
            row, start = 1, 0
            while line := file.readline(MAX_ROW + 1):
                if len(line) > MAX_ROW:
                    raise DataError(f"{path}, row {row}: longer than {MAX_ROW} bytes; is this a table of regions?")
                if line.strip():
                    self._add_row(line, row, start)
                row, start = row + 1, start + len(line)
        if not self._rows:
            raise DataError(f"{path}: no rows")

    def _add_row(self, line: bytes, row: int, start: int) -> None:
        cells = line.count(b"\t") + 1
        if cells not in COLUMNS:
            raise DataError(
                f"{self.path}, row {row}: expected 6 columns (bottom-up attention) or 10 (LXMERT), got {cells}"
            )
        try:
            image = line[: line.index(b"\t")].decode("ascii")
        except UnicodeDecodeError:
            raise DataError(f"{self.path}, row {row}, 'image_id': not ASCII; correct the row") from None
        if image in self._rows:
            raise DataError(f"{self.path}, row {row}: {image!r} is also in row {self._rows[image][0]}; remove one")
        self._rows[image] = (row, start)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, image: str) -> bool:
        return image in self._rows

    def load(self, image: str) -> DetectedImage:
        row, start = self._rows[image]
        with self.path.open("rb") as file:
            file.seek(start)
            cells = file.readline(MAX_ROW).rstrip(b"\r\n").split(b"\t")
        named, where = dict(zip(COLUMNS[len(cells)], cells, strict=True)), f"{self.path}, row {row}"
        width, height, n = (
            positive_integer(named[key], f"{where}, {key!r}") for key in ("image_w", "image_h", "num_boxes")
        )
        if n > MAX_REGIONS:
            raise BadSample(f"{where}, 'num_boxes'", f"expected at most {MAX_REGIONS} regions, got {n}")
        boxes, features = (floats(named[key], n, f"{where}, {key!r}") for key in ("boxes", "features"))
        return checked(features, shares(boxes, width, height, where), None, where)


class RegionFolder:
    """Regions in one file per image, ``folder/ID.npz``. Raises DataError."""

    def __init__(self, folder: Path):
        self._files = {file.stem: file for file in sorted(folder.glob("*.npz"))}
        if not self._files:
            raise DataError(f"{folder}: no .npz files; name a folder with one for each image")

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, image: str) -> bool:
        return image in self._files

    def load(self, image: str) -> DetectedImage:
        where = str(self._files[image])
        arrays = _arrays(self._files[image])

        def need(key: str) -> np.ndarray:
            if key not in arrays:
                raise BadSample(
                    f"{where}, {key!r}", f"missing; the file has {', '.join(sorted(arrays)) or 'no arrays'}"
                )
            return arrays[key]

        features = need("x" if "x" in arrays else "features")
        if "norm_bb" in arrays:
            corners = arrays["norm_bb"].astype(np.float32)
            corners = corners[:, :4] if corners.ndim == 2 else corners
            return checked(features, shares(corners, 1, 1, where), arrays.get("soft_labels"), where)
        width, height = (positive_integer(need(key), f"{where}, {key!r}") for key in ("image_w", "image_h"))
        boxes = need("bbox" if "bbox" in arrays else "boxes").astype(np.float32)
        if "x" in arrays and features.ndim and boxes.ndim and len(features) != len(boxes):
            features = features.T
        return checked(features, shares(boxes, width, height, where), arrays.get("classes"), where)


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """Arrays of an .npz of at most `MAX_ROW` bytes unpacked. Raises BadSample."""
    try:
        arrays = read_npz(file, MAX_ROW, leave_out=("info", "conf"))
    except NotPlain as error:
        raise BadSample(str(file), str(error)) from None
    other = [key for key, array in arrays.items() if array.dtype.kind not in "fiu"]
    if other:
        raise BadSample(f"{file}, {other[0]!r}", f"expected numbers, got {arrays[other[0]].dtype}")
    return arrays
