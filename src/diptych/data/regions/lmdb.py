"""What a detector saw, in the LMDB of ViLBERT, 12-in-1 and VOLTA: image id → pickle of a dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.regions.arrays import MOST_REGIONS, MOST_ROW, DetectedImage, checked, floats, shares, whole_number
from diptych.data.safe_pickle import NotPlain, read_plain
from diptych.data.sources.base import BadSample, DataError

IDS = b"keys"  # beside the images: a list of their ids, which the database tells by itself
NAMES = {
    "height": ("image_h", "image_height", "img_h"),
    "width": ("image_w", "image_width", "img_w"),
    "count": ("num_boxes",),
    "boxes": ("boxes", "bbox"),
    "features": ("features",),
    "classes": ("cls_prob",),
}
"""What each is called in the forms that were published."""


class RegionDatabase:
    """Regions in an LMDB (see regions.DetectedRegions): a folder with ``data.mdb``, or that file. Its pickles are
    read without running any of them (plain_pickle.py). Arrays are numpy's, or float32 in base64. Raises DataError.

    Only the values are guarded so: the file's own pages are read by LMDB, which trusts them.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._begun() as transaction:
            self._ids = {self._named(key) for key in transaction.cursor().iternext(values=False) if key != IDS}
        if not self._ids:
            raise DataError(f"{path}: no images in it")

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, image: str) -> bool:
        return image in self._ids

    def load(self, image: str) -> DetectedImage:
        if image not in self._ids:
            raise KeyError(image)
        where = f"{self.path}, {image}"
        with self._begun() as transaction:
            data = transaction.get(image.encode())
        if len(data) > MOST_ROW:
            raise BadSample(where, f"{len(data)} bytes, more than {MOST_ROW}")
        try:
            held = read_plain(data)
        except NotPlain as error:
            raise BadSample(where, f"not a pickle of plain numbers: {error}") from None
        if not isinstance(held, dict):
            raise BadSample(where, f"a {type(held).__name__}, where there is a dictionary")
        return _detected(held, where)

    def _named(self, key: bytes) -> str:
        try:
            return key.decode("ascii")
        except UnicodeDecodeError:
            raise DataError(f"{self.path}: an image's id is not ASCII; correct the key") from None

    @contextmanager
    def _begun(self) -> Iterator[Any]:
        """A transaction that reads. The file is opened for each, since none may outlive a fork. Raises DataError."""
        try:
            import lmdb
        except ImportError:
            raise DataError(f"{self.path}: reading an LMDB needs an extra: pip install 'diptych[lmdb]'") from None
        try:
            told = {
                "subdir": self.path.is_dir(),
                "readonly": True,
                "lock": False,
                "readahead": False,
                "max_spare_txns": 0,
            }
            with lmdb.open(str(self.path), **told) as opened, opened.begin() as transaction:
                yield transaction
        except lmdb.Error as error:
            raise DataError(f"{self.path}: not an LMDB that can be read ({error})") from None


def _detected(held: dict[Any, Any], where: str) -> DetectedImage:
    """Raises BadSample."""
    found = {what: next((held[name] for name in names if name in held), None) for what, names in NAMES.items()}
    for what in ("height", "width", "boxes", "features"):
        if found[what] is None:
            names = " or ".join(repr(name) for name in NAMES[what])
            raise BadSample(where, f"no {names} among {sorted(key for key in held if isinstance(key, str))[:12]}")
    width, height = (whole_number(found[side], f"{where}, {side}") for side in ("width", "height"))
    boxes = _array(found["boxes"], found["count"], f"{where}, boxes")
    features, classes = (
        None if found[what] is None else _array(found[what], found["count"], f"{where}, {what}")
        for what in ("features", "classes")
    )
    assert features is not None
    return checked(features, shares(boxes[:, :4], width, height, where), classes, where)


def _array(held: Any, count: Any, where: str) -> np.ndarray:
    """Raises BadSample."""
    if isinstance(held, np.ndarray) and held.dtype.kind in "fiu" and held.ndim == 2:
        return held.astype(np.float32)
    if isinstance(held, str):
        held = held.encode("ascii", "replace")
    if not isinstance(held, bytes):
        raise BadSample(
            where, f"a {type(held).__name__} of no such kind, where there are two dimensions of numbers, or base64"
        )
    n = whole_number(count, f"{where}, 'num_boxes'")
    if n > MOST_REGIONS:
        raise BadSample(f"{where}, 'num_boxes'", f"{n} regions are more than {MOST_REGIONS}")
    return floats(held, n, where)
