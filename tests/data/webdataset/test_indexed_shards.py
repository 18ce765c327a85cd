from __future__ import annotations

import io
import json
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.data.sources.base import BadSample, DataError
from diptych.data.sources.captions import open_captions
from diptych.data.webdataset.indexed_shards import CaptionedShards, braces, read_index
from tests.data.tiny_data import image_bytes


def write_tar(path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def sample(i: int) -> dict[str, bytes]:
    return {f"{i:04d}.jpg": image_bytes(i, (20 + i, 30)), f"{i:04d}.txt": f"caption {i}".encode()}


@pytest.mark.parametrize(
    "pattern,expected",
    [
        ("a-{008..010}.tar", ["a-008.tar", "a-009.tar", "a-010.tar"]),
        ("{x,y}-{0..1}.tar", ["x-0.tar", "x-1.tar", "y-0.tar", "y-1.tar"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces(pattern, expected):
    assert list(braces(pattern)) == expected


@pytest.mark.parametrize("pattern", ["a-{3..1}.tar", "a-{0..99999999}.tar"])
def test_invalid_ranges_raise(pattern):
    with pytest.raises(DataError, match="empty or longer than a million"):
        list(braces(pattern))


def test_shards_are_one_random_access_source(tmp_path):
    for shard in range(3):
        write_tar(tmp_path / f"train-{shard:03d}.tar", sample(2 * shard) | sample(2 * shard + 1))
    source = open_captions(str(tmp_path / "train-{000..002}.tar"), "train")
    assert len(source) == 6
    for i in (5, 0, 3):  # in any order
        assert source.captions(i) == (f"caption {i}",) and source.image(i).size == (20 + i, 30)
        assert source.where(i) == f"{tmp_path}/train-{i // 2:03d}.tar, {i:04d}"
    assert len(open_captions(str(tmp_path / "train-*.tar"), "train")) == 6


def test_json_captions_png_and_folders_inside(tmp_path):
    write_tar(
        tmp_path / "val.tar",
        {
            "b/1.png": image_bytes(format="PNG"),
            "b/1.json": json.dumps({"caption": "from json"}).encode(),
            "b/1.cls": b"3",
            "c/1.jpg": image_bytes(),
            "c/1.json": json.dumps({"caption": ["one", "two"]}).encode(),
        },
    )
    source = open_captions(str(tmp_path / "val.tar"), "val")
    assert [source.captions(i) for i in range(2)] == [("from json",), ("one", "two")]


def test_shards_without_a_split_are_divided_by_key(tmp_path):
    members = {}
    for i in range(80):
        members |= {f"{i:04d}.jpg": b"x", f"{i:04d}.txt": b"y"}
    write_tar(tmp_path / "all.tar", members)
    sizes = [len(open_captions(str(tmp_path / "all.tar"), s)) for s in ("train", "val", "test")]
    assert sum(sizes) == 80 and sizes[0] > 60


@pytest.mark.parametrize(
    "members,part",
    [
        ({"1.jpg": b"x"}, r"1: no caption \(txt, json\) beside jpg"),
        ({"1.txt": b"x"}, r"1: no image"),
        ({"1.jpg": b"x", "1.txt": b"caf\xe9"}, "not UTF-8 at byte 3"),
        ({"1.jpg": b"x", "1.json": b"{\n]"}, "line 2"),
        ({"1.jpg": b"x", "1.json": b'{"captoin": "x"}'}, "did you mean captoin?"),
        (
            {"1.jpg": b"x", "1.json": b'{"caption": [1]}'},
            r"'caption', \[0\]: expected a caption, got an integer",
        ),
        ({"1.jpg": b"x", "1.txt": b"x" * 1_000_001}, "1000001 bytes"),
        ({}, "no sample in split"),
    ],
)
def test_malformed_shards(tmp_path, members, part):
    write_tar(tmp_path / "train.tar", members)
    with pytest.raises(DataError, match=part) as caught:
        open_captions(str(tmp_path / "train.tar"), "train")
    assert "train.tar" in str(caught.value)


def test_samples_without_image_or_caption_can_be_listed_instead(tmp_path):
    members = sample(0) | {"1.jpg": b"x", "2.jpg": b"x", "2.txt": b"caf\xe9"} | sample(3)
    write_tar(tmp_path / "cc.tar", members)
    bad = []
    source = CaptionedShards(str(tmp_path / "cc.tar"), "", bad=bad)
    assert [m.key for m in source.members] == ["0000", "0003"]  # of any split
    assert [(s.id, s.where) for s in bad] == [(1, f"{tmp_path}/cc.tar, 1"), (2, f"{tmp_path}/cc.tar, 2")]
    assert bad[0].why.startswith("no caption (txt, json) beside jpg") and bad[1].why.startswith(
        "its caption is not UTF-8"
    )
    write_tar(tmp_path / "none.tar", {})
    assert len(CaptionedShards(str(tmp_path / "none.tar"), "", bad=bad)) == 0


def test_the_intact_samples_of_a_damaged_tar_can_be_kept(tmp_path):
    path = tmp_path / "cc.tar"
    write_tar(path, sample(0) | sample(1) | sample(2))
    index = read_index(path)
    header = index[1].start - 512
    data = path.read_bytes()
    for damaged, left in (
        (data[:header] + b"x" * 512 + data[header + 512 :], 1),  # tarfile itself treats this as the end
        (data[: index[2].start + 10], 2),
        (data[: header + 100], 1),
        (b"x" * 5000, 0),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cc\.tar: not a whole uncompressed tar"):
            read_index(path)
        bad = []
        assert read_index(path, bad=bad) == index[:left]
        assert bad[-1].where == str(path) and "the rest is lost" in bad[-1].why


def test_missing_shards_and_other_files_raise(tmp_path):
    with pytest.raises(DataError, match=r"train-000\.tar: no such shard"):
        open_captions(str(tmp_path / "train-{000..001}.tar"), "train")
    (tmp_path / "train.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match="not a whole uncompressed tar"):
        open_captions(str(tmp_path / "train.tar"), "train")


def test_links_in_a_tar_are_never_followed(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name, data in sample(0).items():
            if name.endswith("jpg"):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("0000.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.txt")
        tar.addfile(link)
    with pytest.raises(DataError, match="no caption"):
        open_captions(str(tmp_path / "train.tar"), "train")


def test_a_bad_image_in_a_shard_is_a_bad_sample(tmp_path):
    write_tar(tmp_path / "train.tar", sample(0) | {"0001.jpg": b"not one", "0001.txt": b"x"})
    source = open_captions(str(tmp_path / "train.tar"), "train")
    with pytest.raises(BadSample, match=r"train\.tar, 0001: not a readable image"):
        source.image(1)


@given(st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_a_damaged_tar_is_indexed_or_raises(tmp_path, data):
    path = tmp_path / "train.tar"
    write_tar(path, sample(0) | sample(1))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, 2000))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(1, len(raw)))])
    try:
        members = read_index(path)
    except DataError as error:
        assert "train.tar" in str(error)
    else:
        assert all(0 <= m.start <= len(raw) and m.captions for m in members)
