"""Reader of the LMDB of detector features of ViLBERT, 12-in-1 and VOLTA: image id to a pickled dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.regions.arrays import MAX_REGIONS, MAX_ROW, DetectedImage, checked, floats, positive_integer, shares
from diptych.data.sources.base import BadSample, DataError
from diptych.utils.safe_pickle import NotPlain, read_plain

IDS = b"keys"  # key of a list of all image ids, which is not needed: the database lists its keys
NAMES = {
    "height": ("image_h", "image_height", "img_h"),
    "width": ("image_w", "image_width", "img_w"),
    "count": ("num_boxes",),
    "boxes": ("boxes", "bbox"),
    "features": ("features",),
    "classes": ("cls_prob",),
}
"""Keys of each array in the published variants."""


class RegionDatabase:
    """Regions in an LMDB (see regions.files.DetectedRegions): a folder with ``data.mdb``, or that file.

    Its pickles are parsed without running them (utils/safe_pickle.py); arrays are numpy's, or float32 in base64. Only
    values are checked: the file's pages are read by the LMDB library, which trusts them. Raises DataError.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._transaction() as transaction:
            self._ids = {self._decoded(key) for key in transaction.cursor().iternext(values=False) if key != IDS}
        if not self._ids:
            raise DataError(f"{path}: contains no images")

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, image: str) -> bool:
        return image in self._ids

    def load(self, image: str) -> DetectedImage:
        if image not in self._ids:
            raise KeyError(image)
        where = f"{self.path}, {image}"
        with self._transaction() as transaction:
            data = transaction.get(image.encode())
        if len(data) > MAX_ROW:
            raise BadSample(where, f"expected at most {MAX_ROW} bytes, got {len(data)}")
        try:
            record = read_plain(data)
        except NotPlain as error:
            raise BadSample(where, f"not a pickle of plain numbers: {error}") from None
        if not isinstance(record, dict):
            raise BadSample(where, f"expected a dictionary, got {type(record).__name__}")
        return _detected(record, where)

    def _decoded(self, key: bytes) -> str:
        try:
            return key.decode("ascii")
        except UnicodeDecodeError:
            raise DataError(f"{self.path}: an image's id is not ASCII; correct the key") from None

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """A read transaction. The file is opened for each, because none may outlive a fork. Raises DataError."""
        try:
            import lmdb
        except ImportError:
            raise DataError(f"{self.path}: reading an LMDB needs an extra: pip install 'diptych[lmdb]'") from None
        try:
            options = {
                "subdir": self.path.is_dir(),
                "readonly": True,
                "lock": False,
                "readahead": False,
                "max_spare_txns": 0,
            }
            with lmdb.open(str(self.path), **options) as opened, opened.begin() as transaction:
                yield transaction
        except lmdb.Error as error:
            raise DataError(f"{self.path}: cannot be read as an LMDB ({error})") from None


def _detected(record: dict[Any, Any], where: str) -> DetectedImage:
    """Regions of one image's record. Raises BadSample."""
    values = {what: next((record[name] for name in names if name in record), None) for what, names in NAMES.items()}
    for what in ("height", "width", "boxes", "features"):
        if values[what] is None:
            names = " or ".join(repr(name) for name in NAMES[what])
            raise BadSample(where, f"no {names} among {sorted(key for key in record if isinstance(key, str))[:12]}")
    width, height = (positive_integer(values[side], f"{where}, {side}") for side in ("width", "height"))
    boxes = _array(values["boxes"], values["count"], f"{where}, boxes")
    features, classes = (
        None if values[what] is None else _array(values[what], values["count"], f"{where}, {what}")
        for what in ("features", "classes")
    )
    assert features is not None
    return checked(features, shares(boxes[:, :4], width, height, where), classes, where)


def _array(value: Any, count: Any, where: str) -> np.ndarray:
    """float32 array of two dimensions. Raises BadSample."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.ndim == 2:
        return value.astype(np.float32)
    if isinstance(value, str):
        value = value.encode("ascii", "replace")
    if not isinstance(value, bytes):
        raise BadSample(where, f"expected numbers in two dimensions, or base64, got {type(value).__name__}")
    n = positive_integer(count, f"{where}, 'num_boxes'")
    if n > MAX_REGIONS:
        raise BadSample(f"{where}, 'num_boxes'", f"expected at most {MAX_REGIONS} regions, got {n}")
    return floats(value, n, where)
