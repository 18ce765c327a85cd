"""Malicious tars: samples before the damage are read, the rest is one bad sample, and no run ends or hangs."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import pytest

from diptych.data.sources.base import BadSample, DataError, Skipped
from diptych.data.webdataset.indexed_shards import CaptionedShards, read_index
from diptych.data.webdataset.tar_samples import tar_samples

END = bytes(1024)


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def extended(record: bytes, name: str) -> bytes:
    """A member whose size is given by a pax record."""
    record = b"%d %s\n" % (len(record) + 4, record)
    return header("p", len(record), tarfile.XHDTYPE) + record.ljust(512, b"\0") + header(name)


def sparse() -> bytes:
    """A sparse file's header that declares an extension header, which is missing."""
    made = bytearray(header("s", 0, tarfile.GNUTYPE_SPARSE))
    made[482] = 1
    made[148:156] = b"%06o\0 " % (256 + sum(made[:148]) + sum(made[156:]))
    return bytes(made)


def before(body: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An extension header before a member's header."""
    return header("p", len(body), kind) + body + bytes(-len(body) % 512)


def record(key: bytes, value: bytes) -> bytes:
    """A pax record, which starts with its own length."""
    body = b" %s=%s\n" % (key, value)
    length = next(n for n in range(len(body), len(body) + 9) if len(b"%d" % n) + len(body) == n)
    return b"%d" % length + body


def with_size(size: int, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A header whose size is in base 256, the notation for sizes too large for octal digits."""
    made = bytearray(header("x", 0, kind))
    made[124:136] = (b"\x80" if size >= 0 else b"\xff") + size.to_bytes(11, signed=True)
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


NAMES = b"".join(record(b"key%d" % i, b"") for i in range(600))
HARM = {
    "digits": before(b"1" * 300_000) + END,
    "fewer digits": before(b"1" * 60_000) + END,
    "a header longer than memory": with_size(3 << 30) + END,
    "a header of a size below 0": with_size(-5) + END,
    "a header of 2**80 bytes": with_size(1 << 80) + END,
    "a link's name longer than memory": with_size(1 << 40, tarfile.GNUTYPE_LONGLINK) + END,
    "headers upon headers": before(record(b"a", b"b")) * 5000 + header("1.txt") + END,
    "a size of 4,000 digits": before(record(b"size", b"9" * 4000)) + header("1.txt") + END,
    "a size beyond the file": before(record(b"size", b"9" * 90)) + header("1.bin") + END,
    "records for every member": before(NAMES, tarfile.XGLTYPE)
    + before(NAMES.replace(b"key", b"yek"), tarfile.XGLTYPE)
    + header("a.bin") * 30_000
    + END,
    "a sparse file in records": before(record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0"))
    + header("s", 512)
    + b"99999999\n".ljust(512, b"1")
    + END,
    "names upon names": header("x", 0, tarfile.GNUTYPE_LONGNAME) * 2000 + END,
    "a name longer than memory": header("x", 1 << 62, tarfile.GNUTYPE_LONGNAME) + END,
    "back to its own start": extended(b"size=-1536", "1.txt") + END,
    "a sparse file without an end": sparse(),
}


@pytest.mark.parametrize("harm", HARM)
def test_malicious_content_is_one_bad_sample(tmp_path: Path, harm: str):
    shard, caption, bad = tmp_path / "train-0.tar", b"a dog".ljust(512, b"\0"), list[Skipped]()
    shard.write_bytes(header("0.jpg", 5) + caption + header("0.txt", 5) + caption + HARM[harm])
    samples = [raw for raw, _ in tar_samples(shard)]
    assert [bool(raw.bad) for raw in samples] == [False, True]
    assert samples[0].captions == ("a dog",) and "not a whole uncompressed tar" in samples[1].bad
    assert [member.key for member in read_index(shard, bad=bad)] == ["0"] and len(bad) == 1
    with pytest.raises(DataError, match="not a whole uncompressed tar"):
        read_index(shard)


def in_order(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


A, B = (("a.jpg", b"first"), ("a.txt", b"a dog")), (("b.jpg", b"other"), ("b.txt", b"a cat"))


@pytest.mark.parametrize("again", [("a.jpg", b"second"), ("a.JPG", b"second"), ("a.txt", b"a cow")])
def test_a_sample_with_a_duplicate_member_is_bad(tmp_path: Path, again: tuple[str, bytes]):
    shard, bad = in_order(tmp_path / "x.tar", *A, again, *B), list[Skipped]()
    suffix = again[0].lower()[1:]
    samples = [(raw.where, raw.bad, raw.picture) for raw, _ in tar_samples(shard)]
    why = f"it has two {suffix} members; give each sample its own key"
    assert samples == [(f"{shard}, a", why, b""), (f"{shard}, b", "", b"other")]
    assert [member.key for member in read_index(shard, bad=bad)] == ["b"]
    assert [(s.where, s.why) for s in bad] == [(f"{shard}, a", why)]
    with pytest.raises(DataError, match=f"a: it has two {suffix}"):
        read_index(shard)


@pytest.mark.parametrize(
    "members,why",
    [
        ([("a.png", b"other")], "two images, .jpg and .png; give each sample one"),
        ([("c.gif", b"x")], "no image (jpg, jpeg, png, webp) beside gif; write the shard again"),
        (
            [("2.5_mm.jpg", b"x"), ("2.5_mm.txt", b"x")],
            "no image (jpg, jpeg, png, webp) beside 5_mm.jpg; a key ends at the first dot of its name; write the shard again",
        ),
        ([("c.jpg", b"x"), ("c.txt", b"nan")], "'nan' stands for a missing value; write a text, or drop the row"),
        (
            [("c.jpg", b"x"), ("c.json", b'{"caption": "a", "split": "val"}')],
            "'split': 'val' contradicts the tar's name; put each split into tars named for it",
        ),
    ],
    ids=["two images", "gif", "dots", "nan", "split"],
)
def test_unrecognised_members_are_named_not_ignored(tmp_path: Path, members: list[tuple[str, bytes]], why: str):
    shard, bad = in_order(tmp_path / "x.tar", *B, *A, *members), list[Skipped]()
    assert [raw.bad for raw, _ in tar_samples(shard) if raw.bad] == [why]
    kept = [member.key for member in read_index(shard, bad=bad)]
    assert kept == [key for key in ("b", "a") if f"{shard}, {key}" != bad[0].where] and [s.why for s in bad] == [why]
    with pytest.raises(DataError, match=re.escape(why)):
        read_index(shard)


def test_other_members_beside_a_sample_are_ignored(tmp_path: Path):
    beside = [("a.seg.png", b"x"), ("a.cls", b"3"), ("._a.jpg", b"x"), ("a.tif", b"x"), ("about.en.txt", b"x")]
    agreeing = [("B.JPG", b"x"), ("B.json", b'\xef\xbb\xbf{"caption": "a cat", "split": "training"}')]
    shard = in_order(tmp_path / "train.tar", *A, *beside, *agreeing)
    assert [(member.key, member.captions) for member in read_index(shard)] == [("a", ("a dog",)), ("B", ("a cat",))]
    assert [(raw.bad, raw.captions) for raw, _ in tar_samples(shard)] == [("", ("a dog",)), ("", ("a cat",))]


def test_a_repeated_key_is_another_sample_of_a_stream_and_a_bad_one_of_an_index(tmp_path: Path):
    """Whether or not the stream starts after the first."""
    shard, bad = in_order(tmp_path / "x.tar", *A, *B, ("a.jpg", b"second"), ("a.txt", b"a cow")), list[Skipped]()
    samples = list(tar_samples(shard))
    assert [raw.captions for raw, _ in samples] == [("a dog",), ("a cat",), ("a cow",)]
    assert list(tar_samples(shard, samples[0][1])) == samples[1:]
    assert [member.key for member in read_index(shard, bad=bad)] == ["b"] and len(bad) == 1


def test_an_image_above_the_size_limit_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shard = in_order(tmp_path / "x.tar", ("a.jpg", bytes(101)), *A[1:], *B)
    monkeypatch.setattr("diptych.data.webdataset.tar_samples.MAX_IMAGE_BYTES", 100)
    (large, _), (other, _) = tar_samples(shard)
    assert large.bad == "its image has 101 bytes, more than 100; write the shard again" and not large.picture
    assert other.picture == b"other" and not other.bad
    source = CaptionedShards(str(shard), "")
    with pytest.raises(BadSample, match="a: its image has 101 bytes"):
        source.file(0)
    assert source.file(1) == b"other"


def test_valid_headers_before_a_member_are_read(tmp_path: Path):
    """Names of 3,000 letters, pax records of times and comments, global ones, and a sparse file that is ignored."""
    long, shard = "folder/" * 400 + "1", tmp_path / "x.tar"
    sparse_file = bytearray(header("s", 0, tarfile.GNUTYPE_SPARSE))
    caption = b"a cat".ljust(512, b"\0")
    made = before(record(b"comment", b"made by hand"), tarfile.XGLTYPE) + bytes(sparse_file)
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for suffix in ("jpg", "txt"):
            info = tarfile.TarInfo(f"{long}{format}.{suffix}")
            info.size, info.mtime, info.uname = 5, 1672531200.123456789, "ü" * 50
            made += info.tobuf(format) + caption
    shard.write_bytes(made + END)
    assert [(raw.captions, raw.bad) for raw, _ in tar_samples(shard)] == [(("a cat",), "")] * 2
    assert [member.key for member in read_index(shard)] == [
        f"{long}{tarfile.GNU_FORMAT}",
        f"{long}{tarfile.PAX_FORMAT}",
    ]


def test_a_name_that_is_not_utf8_is_reported_escaped(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for suffix, content in ((".jpg", b"not an image"), (".txt", b"a dog")):
            info = tarfile.TarInfo(f"caf\xe9{suffix}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    ((sample, _),) = tar_samples(tmp_path / "a.tar")
    assert "caf\\xe9" in sample.where and sample.where.encode()
