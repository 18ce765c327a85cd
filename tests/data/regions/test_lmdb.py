"""Regions from an LMDB of pickles: read as they are published, without running any pickle."""

from __future__ import annotations

import base64
import pickle
import struct
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diptych.data.regions import lmdb as region_database
from diptych.data.regions.files import open_regions
from diptych.data.sources.base import BadSample, DataError
from diptych.utils.safe_pickle import NotPlain, read_plain

lmdb = pytest.importorskip("lmdb", reason="needs the extra `lmdb`")
BOXES = np.array([[0, 0, 40, 25], [10, 20, 80, 50]], dtype=np.float32)
FEATURES = np.arange(6, dtype=np.float32).reshape(2, 3)
CLASSES = np.full((2, 4), 0.25, dtype=np.float32)
SHARES = [[0, 0, 0.4, 0.5, 0.2], [0.1, 0.4, 0.8, 1.0, 0.42]]


def packed(array: np.ndarray) -> bytes:
    return base64.b64encode(array.tobytes())


NUMPY: dict[str, Any] = {
    "image_id": "17",
    "image_h": 50,
    "image_w": np.int64(100),
    "num_boxes": 2,
    "boxes": BOXES,
    "features": FEATURES,
}
BASE64: dict[str, Any] = NUMPY | {"image_w": 100, "boxes": packed(BOXES), "features": packed(FEATURES)}
VOLTA: dict[str, Any] = {
    "img_id": 17,
    "img_h": 50,
    "img_w": 100,
    "num_boxes": 2,
    "boxes": packed(BOXES),
    "features": packed(FEATURES),
}


class Runs:
    """Code that a pickle would run."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def database(path: Path, images: dict[str, Any], protocol: int = 4) -> Path:
    opened = lmdb.open(str(path), map_size=2**22)
    with opened.begin(write=True) as transaction:
        for name, item in images.items():
            value = item if isinstance(item, bytes) else pickle.dumps(item, protocol)
            transaction.put(name.encode(), value)
        transaction.put(b"keys", pickle.dumps([name.encode() for name in images], protocol))
    opened.close()
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "item", [NUMPY, BASE64, VOLTA | {"cls_prob": packed(CLASSES)}], ids=["numpy", "base64", "volta"]
)
def test_published_layouts_are_read(item: dict[str, Any], protocol: int, tmp_path: Path):
    source = open_regions(database(tmp_path / "x.lmdb", {"17": item, "4": NUMPY}, protocol))
    assert len(source) == 2 and "17" in source and "keys" not in source
    one = source.load("17")
    np.testing.assert_array_equal(one.features, FEATURES)
    np.testing.assert_allclose(one.boxes, SHARES, rtol=1e-6)
    assert (one.classes is not None) == ("cls_prob" in item)
    with pytest.raises(KeyError):
        source.load("keys")


def test_another_process_can_read_it(tmp_path: Path):
    source = open_regions(database(tmp_path / "x.lmdb", {"17": NUMPY}))
    source.load("17")
    with get_context("fork").Pool(1) as pool:
        assert pool.apply(source.load, ["17"]).features.sum() == 15


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (NUMPY | {"features": Runs()}, "not a pickle of plain numbers: it names '.*exec', which could run code"),
        (NUMPY | {"note": np.array([Runs()], dtype=object)}, "not a pickle of plain numbers"),
        (NUMPY | {"note": np.float64}, "it names 'numpy.float64'"),
        (NUMPY | {"boxes": np.array(["a", "b"])}, "an array of 'U1'"),
        (b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n.", "it holds a function|broken"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", "not a pickle of plain numbers: broken"),
        (b"(" * 100, "not a pickle of plain numbers"),
        (b"", "not a pickle of plain numbers"),
        ([1, 2], "expected a dictionary, got list"),
        (NUMPY | {"features": 7}, "features: expected numbers in two dimensions, or base64, got int"),
        (NUMPY | {"features": FEATURES[0]}, "features: expected numbers in two dimensions, or base64, got ndarray"),
        (NUMPY | {"features": FEATURES * np.nan}, "features: has values that are not finite"),
        (NUMPY | {"features": FEATURES[:1]}, r"features: expected one row for each of 2 boxes, got shape \(1, 3\)"),
        (BASE64 | {"num_boxes": 10**6}, "'num_boxes': expected at most 1000 regions, got 1000000"),
        (BASE64 | {"num_boxes": None}, "'num_boxes': must be an integer in"),
        (NUMPY | {"image_h": "tall"}, "height: must be an integer in"),
        ({"features": FEATURES}, "no 'image_h' or 'image_height' or 'img_h' among"),
    ],
)
def test_a_hostile_or_broken_entry_is_a_bad_sample(item: Any, message: str, tmp_path: Path):
    source = open_regions(database(tmp_path / "x.lmdb", {"17": item, "4": NUMPY}))
    with pytest.raises(BadSample, match=message) as error:
        source.load("17")
    assert error.value.where.startswith(f"{tmp_path / 'x.lmdb'}, 17")
    np.testing.assert_array_equal(source.load("4").features, FEATURES)


def test_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = open_regions(database(tmp_path / "x.lmdb", {"17": NUMPY}))
    monkeypatch.setattr(region_database, "MAX_ROW", 100)
    with pytest.raises(BadSample, match="at most 100 bytes, got"):
        source.load("17")


def test_a_file_that_is_not_a_database_raises(tmp_path: Path):
    (tmp_path / "data.mdb").write_bytes(b"not one" * 1000)
    with pytest.raises(DataError, match="cannot be read as an LMDB"):
        open_regions(tmp_path)
    with pytest.raises(DataError, match="contains no images"):
        open_regions(database(tmp_path / "empty", {}))


PLAIN = {
    "none": None, "truth": [True, False], "numbers": (1, -5, 300, 70000, 2**40, -(2**70), 0.5), "text": "é" * 300, "bytes": b"\xff" * 300,
    "nested": {"a": [{"b": (1, 2)}, []], "c": ()}, "nothing": {}, "more": list(range(1200)), "shared": [[1]] * 3,
}  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_restored(protocol: int):
    assert read_plain(pickle.dumps(PLAIN, protocol)) == PLAIN


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "array",
    [np.arange(6, dtype=">i2").reshape(2, 3), np.asfortranarray(np.ones((2, 3))), np.zeros((0, 4), "f2"), np.array(3.5), np.uint8(7), np.float32(2)],
    ids=["big-endian", "fortran", "empty", "0-d", "scalar", "float scalar"],
)  # fmt: skip
def test_arrays_are_restored(array: Any, protocol: int):
    result = read_plain(pickle.dumps({"x": array}, protocol))["x"]
    np.testing.assert_array_equal(result, array)
    assert result.dtype.newbyteorder("=") == array.dtype.newbyteorder("=") and result.shape == array.shape


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'false'\ntR.",
        b"\x80\x02cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x05false\x85R.",
        b"(S'false'\nios\nsystem\n.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85C\x01b\x87R.",
        b"\x80\x02cnumpy\nndarray\n)R.",
        b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R.",
        b"\x80\x02}(]K\x01u.",
        b"\x80\x02K\x01K\x02a.",
        b"\x80\x02]]s.",
        b"\x80\x02P1\n.",
        b"\x80\x02K\x01K\x02.",
        b"\x80\x02h\x05.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_pickles_that_run_code_raise(program: bytes):
    with pytest.raises(NotPlain):
        read_plain(program)


MODULUS = 2**61 - 1  # of the hash of integers: all multiples of it have one hash


def long(number: int) -> bytes:
    data = number.to_bytes((number.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


MULTIPLES = [long(k * MODULUS) for k in range(40_000)]
HEAVY = {
    "keys of one hash": b"\x80\x02}(" + b"N".join(MULTIPLES) + b"Nu.",
    "one by one": b"\x80\x02}" + b"Ns".join(MULTIPLES) + b"Ns.",
    "in a mark": b"(" + b"N".join(MULTIPLES) + b"Nd.",
    "below 0": b"}" + b"Ns".join(long(-k * MODULUS) for k in range(40_000)) + b"Ns.",
    "floating point": b"}" + b"".join(b"G" + struct.pack(">d", 2.0 ** (61 * k)) + b"Ns" for k in range(16)) + b".",
    "memo keys of one hash": b"N" + b"".join(b"p%d\n" % (k * MODULUS) for k in range(40_000)) + b".",
    "a memo key below 0": b"Np-1\n.",
    "dicts in dicts": b"}K\x01" * 5000 + b"}" + b"s" * 5000 + b".",
    "a dict in itself": b"}q\x00K\x01h\x00s.",
    "a number of a million digits": b"L" + b"1" * 1_000_000 + b"L\n.",
    "more bytes than it contains": b"\x8e" + struct.pack("<Q", 1 << 40) + b"a.",
    "bytes of a number": b"cbuiltins\nbytes\n\x8a\x05\0\0\0\0\x01\x85R.",
    "bytearray of a number": b"cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x01\x85R.",
}


@pytest.mark.quick(
    "keys of one hash",
    "one by one",
    "below 0",
    "floating point",
    "memo key*",
    "a *",
    "more *",
    "bytes *",
    "bytearray *",
)
@pytest.mark.parametrize("name", HEAVY)
def test_pickles_that_would_take_much_time_or_memory_raise_at_once(name: str):
    began = time.process_time()
    with pytest.raises(NotPlain):
        read_plain(HEAVY[name])
    assert time.process_time() - began < 10  # hash collisions: quadratic in their number


def test_repeated_references_take_linear_time():
    """Lists and dicts forty deep, each with the one before twice: 2**40 paths, and 41 objects."""
    for begin, fill in ((b"]", b"(h%ch%ce"), (b"}", b"(K\x01h%cK\x02h%cu")):
        deep = begin + b"q\x00" + b"".join(begin + b"q%c" % k + fill % (k - 1, k - 1) for k in range(1, 41))
        result = read_plain(b"(" + deep + b"l.")[-1]
        for _ in range(40):
            assert len(result) == 2
            result = result[0] if isinstance(result, list) else result[1]
        assert not result


def test_keys_up_to_a_bound_are_read():
    table = {2**60 - 1: 1, -(2**60) + 1: 2, 0: 3, "a": 4, b"a": 5, None: 6}
    assert read_plain(pickle.dumps(table)) == table
    with pytest.raises(NotPlain, match=r"an integer key that is not below 2\*\*60"):
        read_plain(pickle.dumps({2**60: 1}))
    with pytest.raises(NotPlain, match="a float as a key"):
        read_plain(pickle.dumps({0.5: 1}))
