"""What a detector saw, in the forms in which it is published: a table (TSV) or one .npz an image.

- TSV without a header, as bottom-up attention writes it: image_id, image_w, image_h, num_boxes, boxes, features; or
  LXMERT's ten columns, which have objects and attributes between. Arrays are float32 in base64.
- .npz: features (n × f) with boxes (n × 4, pixels), image_w and image_h; or UNITER's features with norm_bb (shares) and
  soft_labels; or bottom-up-attention.pytorch's x (n × f, or OpenVQA's f × n) with bbox, image_w and image_h. The file's
  stem is the image's id.

- an LMDB of pickled dictionaries, as ViLBERT, 12-in-1 and VOLTA keep it (region_database.py; extra `lmdb`).

.npy files of dictionaries are refused: convert them. UNITER's LMDB packs the same .npz that are read here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from diptych.data.regions.arrays import MOST_REGIONS, MOST_ROW, DetectedImage, checked, floats, shares, whole_number
from diptych.data.regions.lmdb import RegionDatabase
from diptych.data.safe_pickle import NotPlain, read_npz
from diptych.data.sources.base import BadSample, DataError

COLUMNS = {
    6: ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
    10: ("image_id", "image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features"),
}  # fmt: skip
CONVERT = "write it as .npz (features, boxes, image_w, image_h) where you trust what it holds"


@runtime_checkable
class DetectedRegions(Protocol):
    """Random access to regions by the image's id. Cheap to open: only where each image's lie is kept in memory."""

    def __len__(self) -> int: ...

    def __contains__(self, image: str) -> bool: ...

    def load(self, image: str) -> DetectedImage:
        """Raises KeyError for an image that is not there, BadSample for one that cannot be used."""
        ...


def open_regions(path: Path) -> DetectedRegions:
    """The regions in a .tsv, a folder of .npz, or an LMDB. Raises DataError.

    Any examples show them: ``PairExamples(source, tokenizer, DetectorRegions(open_regions(path)))`` (data/seen.py).
    """
    if path.suffix in (".pkl", ".npy"):
        raise DataError(f"{path}: holds pickles, which can run code, and is not read; {CONVERT}")
    if (path / "data.mdb").is_file() or (path.suffix == ".lmdb" and path.is_file()):
        return RegionDatabase(path)
    if path.suffix == ".tsv" and path.is_file():
        return RegionTable(path)
    if path.is_dir():
        return RegionFolder(path)
    raise DataError(f"{path}: neither a .tsv nor a folder of .npz or an LMDB; check the path")


class RegionTable:
    """Regions in a TSV, whose rows are found once and read when asked for. Raises DataError."""

    def __init__(self, path: Path):
        self.path = path
        self._rows: dict[str, tuple[int, int]] = {}  # id → which row, and where it begins
        with path.open("rb") as file:
            row, start = 1, 0
            while line := file.readline(MOST_ROW + 1):
                if len(line) > MOST_ROW:
                    raise DataError(f"{path}, row {row}: longer than {MOST_ROW} bytes; is this a table of regions?")
                if line.strip():
                    self._enter(line, row, start)
                row, start = row + 1, start + len(line)
        if not self._rows:
            raise DataError(f"{path}: no rows")

    def _enter(self, line: bytes, row: int, start: int) -> None:
        cells = line.count(b"\t") + 1
        if cells not in COLUMNS:
            raise DataError(f"{self.path}, row {row}: {cells} columns, where there are 6 (bottom-up) or 10 (LXMERT)")
        try:
            image = line[: line.index(b"\t")].decode("ascii")
        except UnicodeDecodeError:
            raise DataError(f"{self.path}, row {row}, 'image_id': not ASCII; correct the row") from None
        if image in self._rows:
            raise DataError(f"{self.path}, row {row}: {image!r} stands in row {self._rows[image][0]} too; remove one")
        self._rows[image] = (row, start)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, image: str) -> bool:
        return image in self._rows

    def load(self, image: str) -> DetectedImage:
        row, start = self._rows[image]
        with self.path.open("rb") as file:
            file.seek(start)
            cells = file.readline(MOST_ROW).rstrip(b"\r\n").split(b"\t")
        named, where = dict(zip(COLUMNS[len(cells)], cells, strict=True)), f"{self.path}, row {row}"
        width, height, n = (
            whole_number(named[key], f"{where}, {key!r}") for key in ("image_w", "image_h", "num_boxes")
        )
        if n > MOST_REGIONS:
            raise BadSample(f"{where}, 'num_boxes'", f"{n} regions are more than {MOST_REGIONS}")
        boxes, features = (floats(named[key], n, f"{where}, {key!r}") for key in ("boxes", "features"))
        return checked(features, shares(boxes, width, height, where), None, where)


class RegionFolder:
    """Regions of one image a file, named by its id: ``folder/ID.npz``. Raises DataError."""

    def __init__(self, folder: Path):
        self._files = {file.stem: file for file in sorted(folder.glob("*.npz"))}
        if not self._files:
            raise DataError(f"{folder}: no .npz there; name a folder that holds one for each image")

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, image: str) -> bool:
        return image in self._files

    def load(self, image: str) -> DetectedImage:
        where = str(self._files[image])
        arrays = _arrays(self._files[image])

        def need(key: str) -> np.ndarray:
            if key not in arrays:
                raise BadSample(f"{where}, {key!r}", f"missing beside {', '.join(sorted(arrays)) or 'nothing'}")
            return arrays[key]

        features = need("x" if "x" in arrays else "features")
        if "norm_bb" in arrays:
            corners = arrays["norm_bb"].astype(np.float32)
            corners = corners[:, :4] if corners.ndim == 2 else corners
            return checked(features, shares(corners, 1, 1, where), arrays.get("soft_labels"), where)
        width, height = (whole_number(need(key), f"{where}, {key!r}") for key in ("image_w", "image_h"))
        boxes = need("bbox" if "bbox" in arrays else "boxes").astype(np.float32)
        if "x" in arrays and features.ndim and boxes.ndim and len(features) != len(boxes):
            features = features.T
        return checked(features, shares(boxes, width, height, where), arrays.get("classes"), where)


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz, which unpacks to no more than `MOST_ROW` bytes. Raises BadSample."""
    try:
        found = read_npz(file, MOST_ROW, leave_out=("info", "conf"))
    except NotPlain as error:
        raise BadSample(str(file), str(error)) from None
    odd = [key for key, array in found.items() if array.dtype.kind not in "fiu"]
    if odd:
        raise BadSample(f"{file}, {odd[0]!r}", f"holds {found[odd[0]].dtype}, not numbers")
    return found
