"""Tars that were made to do harm: what stands before is read, the rest is one bad sample, and no run ends or hangs of it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from diptych.data.raws import raws
from diptych.data.shards import read_index
from diptych.data.source import DataError, Skipped

END = bytes(1024)


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def extended(record: bytes, name: str) -> bytes:
    """A member whose size a pax record tells."""
    record = b"%d %s\n" % (len(record) + 4, record)
    return header("p", len(record), tarfile.XHDTYPE) + record.ljust(512, b"\0") + header(name)


def sparse() -> bytes:
    """A sparse file's header that announces more of itself, which does not come."""
    made = bytearray(header("s", 0, tarfile.GNUTYPE_SPARSE))
    made[482] = 1
    made[148:156] = b"%06o\0 " % (256 + sum(made[:148]) + sum(made[156:]))
    return bytes(made)


HARM = {
    "names upon names": header("x", 0, tarfile.GNUTYPE_LONGNAME) * 2000 + END,
    "a name longer than memory": header("x", 1 << 62, tarfile.GNUTYPE_LONGNAME) + END,
    "back to where it began": extended(b"size=-1536", "1.txt") + END,
    "a sparse file without an end": sparse(),
}


@pytest.mark.parametrize("harm", HARM)
def test_harm_is_one_bad_sample(tmp_path: Path, harm: str):
    shard, caption, bad = tmp_path / "train-0.tar", b"a dog".ljust(512, b"\0"), list[Skipped]()
    shard.write_bytes(header("0.jpg", 5) + caption + header("0.txt", 5) + caption + HARM[harm])
    found = [raw for raw, _ in raws(shard)]
    assert [bool(raw.bad) for raw in found] == [False, True]
    assert found[0].captions == ("a dog",) and "not a whole uncompressed tar" in found[1].bad
    assert [member.key for member in read_index(shard, bad=bad)] == ["0"] and len(bad) == 1
    with pytest.raises(DataError, match="not a whole uncompressed tar"):
        read_index(shard)


def test_a_name_that_is_no_text_is_told_in_letters_that_every_page_can_hold(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for suffix, content in ((".jpg", b"no picture"), (".txt", b"a dog")):
            info = tarfile.TarInfo(f"caf\xe9{suffix}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    ((found, _),) = raws(tmp_path / "a.tar")
    assert "caf\\xe9" in found.where and found.where.encode()
