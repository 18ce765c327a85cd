"""Safetensors files with a digest of their own content, which detects damage when they are read.

The file's metadata has ``{"digest": "diptych1:STATE:TENSORS"}``: CRC-32 of the other metadata, and of every tensor's
name, dtype, shape and bytes. It protects against accidents, not against forgery: CRC-32 detects every flipped bit and
every burst of up to 32, at twice the speed of blake2b. The digest is recognised both by its key and by the prefix of
its value, so that no single flipped bit can make a file look as if it had none. Files without a digest come from
other programs and are read unchecked.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_KEY, _MARK = "digest", "diptych1"


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message names the file, the location in it, and what to do."""


class Damaged(CheckpointError):
    """A file of tensors is damaged; the message names the file and the reason, and the caller adds what to do."""


def with_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> dict[str, str]:
    """The metadata to save `tensors` with: `metadata`, and the digest of both."""
    rest = dict(metadata or {})
    return rest | {_KEY: _digest(_state(rest), _tensors((name, tensors[name]) for name in sorted(tensors)))}


def has_digest(path: Path) -> bool:
    """Whether a file has a digest. Raises Damaged if its header cannot be read."""
    with _open(path) as file:
        return _digest_of(path, file.metadata() or {}) is not None


def header(path: Path) -> dict[str, str]:
    """The metadata of a file without the digest, checked. Raises Damaged."""
    with _open(path) as file:
        return _header(path, file.metadata() or {})[0]


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, and its metadata without the digest, both checked. Raises Damaged."""
    with _open(path) as file:
        metadata, expected = _header(path, file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _compare(path, expected, ((name, tensors[name]) for name in sorted(tensors)))
    return tensors, metadata


def holds_tensors(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file holds exactly these tensors, compared by their digest. Raises Damaged."""
    with _open(path) as file:
        _, written = _header(path, file.metadata() or {})
        if written is None:
            written = _tensors((name, file.get_tensor(name)) for name in sorted(file.keys()))
    return written == _tensors((name, tensors[name]) for name in sorted(tensors))


def check(path: Path) -> None:
    """Reads a file, one tensor at a time, and compares it with its digest. Raises Damaged."""
    with _open(path) as file:
        _, expected = _header(path, file.metadata() or {})
        _compare(path, expected, ((name, file.get_tensor(name)) for name in sorted(file.keys())))


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, UnicodeDecodeError) as error:
        raise Damaged(f"{path} cannot be read ({error})") from None
    except OSError as error:
        why = error.strerror or " ".join(str(error).split())
        raise CheckpointError(f"{path} cannot be read ({why}); check the file and its folder") from None


def _header(path: Path, metadata: dict[str, str]) -> tuple[dict[str, str], str | None]:
    """The metadata without the digest, checked, and the expected digest of the tensors."""
    expected = _digest_of(path, metadata)
    rest = {key: value for key, value in metadata.items() if key != _KEY}
    if expected is None:
        return rest, None
    state, tensors = expected
    if state != _state(rest):
        raise Damaged(f"{path} is damaged: its state is not what was written")
    return rest, tensors


def _digest_of(path: Path, metadata: Mapping[str, str]) -> tuple[str, str] | None:
    """The digests of metadata and of tensors in a header; None if it has no digest."""
    digests = {key: value for key, value in metadata.items() if key == _KEY or value.startswith(f"{_MARK}:")}
    if not digests:
        return None
    mark, _, both = digests.get(_KEY, "").partition(":")
    state, _, tensors = both.partition(":")
    if len(digests) != 1 or mark != _MARK or not tensors:
        raise Damaged(f"{path} is damaged: its digest cannot be read")
    return state, tensors


def _digest(state: str, tensors: str) -> str:
    return f"{_MARK}:{state}:{tensors}"


def _state(metadata: Mapping[str, str]) -> str:
    return f"{zlib.crc32(json.dumps(sorted(metadata.items())).encode()):08x}"


def _tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """CRC-32 of names, dtypes, shapes and bytes, in the order of the iterable."""
    crc = 0
    for name, t in tensors:
        crc = zlib.crc32(f"{name} {t.dtype} {tuple(t.shape)} ".encode(errors="surrogatepass"), crc)
        crc = zlib.crc32(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def _compare(path: Path, expected: str | None, tensors: Iterable[tuple[str, Tensor]]) -> None:
    if expected is not None and _tensors(tensors) != expected:
        raise Damaged(f"{path} is damaged: its tensors are not what was written")
