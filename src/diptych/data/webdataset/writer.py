"""Writer of WebDataset tars: the same bytes for the same samples, with safe member names only."""

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
from diptych.data.webdataset.tar_samples import MAX_TEXT_BYTES

KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # formats written unchanged; others become PNG
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9_-]*)*")
MAX_KEY_CHARS = 80  # characters; fits a plain tar header together with its suffix


@dataclass(frozen=True)
class Sample:
    """One sample to write: the image file and its JSON (see `sample_texts`)."""

    key: str
    picture: bytes
    suffix: str
    json: bytes


def safe_key(key: str) -> str:
    """The key itself if it is a plain relative name, else a digest of it."""
    if len(key) <= MAX_KEY_CHARS and SAFE.fullmatch(key):
        return key
    return "sample-" + hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def picture_file(source: Captioned, index: int) -> tuple[bytes, str]:
    """Image file and suffix: the original bytes if the format is one of KEPT, else a PNG. Raises BadSample."""
    if isinstance(source, ImageFiles):
        data = source.file(index)
        if (kind := format_of(data, source.where(index))) in KEPT:
            return data, KEPT[kind]
    out = io.BytesIO()
    source.image(index).save(out, "PNG")
    return out.getvalue(), "png"


def sample_texts(captions: Sequence[str], more: dict[str, Any], where: str) -> bytes:
    """JSON of an image: `captions` under "caption", which readers expect, and the keys of `more`.

    Raises BadSample if it is longer than readers accept.
    """
    text = json.dumps({"caption": list(captions), **more}, ensure_ascii=False, indent=1, allow_nan=False)
    data = text.encode(errors="replace")
    if len(data) > MAX_TEXT_BYTES:
        raise BadSample(where, f"its JSON has {len(data)} bytes, more than {MAX_TEXT_BYTES}")
    return data


def write_shard(path: Path, samples: Iterable[Sample]) -> None:
    """Writes a tar of ``key.jpg`` (png, webp) and ``key.json`` per sample, without times or owners."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for suffix, data in ((sample.suffix, sample.picture), ("json", sample.json)):
                info = tarfile.TarInfo(f"{safe_key(sample.key)}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
