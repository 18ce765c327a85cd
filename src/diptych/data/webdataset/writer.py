"""WebDataset tars, written: the same bytes for the same samples, and no name in them that leads anywhere."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.data.images.decode import format_of
from diptych.data.images.loading import ImageFiles
from diptych.data.sources.base import BadSample, Captioned
from diptych.data.webdataset.tar import MOST_TEXT

KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # formats that stay as they are; others become PNG
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9_-]*)*")
LONGEST_KEY = 80  # characters: with its suffix a plain tar header holds it


@dataclass(frozen=True)
class Sample:
    """What is written of one image: its file, and `told` (see `described`) as key.json."""

    key: str
    picture: bytes
    suffix: str
    told: bytes


def safe_key(key: str) -> str:
    """The key itself where it is a plain relative name; otherwise a digest of it, which is one."""
    if len(key) <= LONGEST_KEY and SAFE.fullmatch(key):
        return key
    return "sample-" + hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def picture_file(source: Captioned, index: int) -> tuple[bytes, str]:
    """A picture's file and its suffix: the very bytes where the format is one of KEPT, PNG otherwise. Raises BadSample."""
    if isinstance(source, ImageFiles):
        data = source.file(index)
        if (kind := format_of(data, source.where(index))) in KEPT:
            return data, KEPT[kind]
    out = io.BytesIO()
    source.image(index).save(out, "PNG")
    return out.getvalue(), "png"


def sample_texts(captions: Sequence[str], more: dict[str, Any], where: str) -> bytes:
    """An image's JSON: `captions` as "caption", which the readers know, and whatever `more` is told of it.

    Raises BadSample where that is longer than a reader takes.
    """
    told = json.dumps({"caption": list(captions), **more}, ensure_ascii=False, indent=1, allow_nan=False)
    data = told.encode(errors="replace")
    if len(data) > MOST_TEXT:
        raise BadSample(where, f"what is told of it takes {len(data)} bytes, more than {MOST_TEXT}")
    return data


def write_shard(path: Path, samples: Iterable[Sample]) -> None:
    """A tar of ``key.jpg`` (png, webp) beside ``key.json``, sample after sample; nothing in it tells when or by whom."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for suffix, data in ((sample.suffix, sample.picture), ("json", sample.told)):
                info = tarfile.TarInfo(f"{safe_key(sample.key)}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
