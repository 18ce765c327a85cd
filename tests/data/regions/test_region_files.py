"""Region files in their published layouts, and the errors for broken ones."""

from __future__ import annotations

import base64
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diptych.data.regions import files as regions
from diptych.data.regions.arrays import DetectedImage, positive_integer, stack_regions
from diptych.data.regions.files import RegionTable, open_regions
from diptych.data.sources.base import BadSample, DataError
from diptych.utils.safe_pickle import read_npz

BOXES = np.array([[0, 0, 40, 25], [10, 20, 80, 50]], dtype=np.float32)
FEATURES = np.arange(6, dtype=np.float32).reshape(2, 3)
SHARES = [[0, 0, 0.4, 0.5, 0.2], [0.1, 0.4, 0.8, 1.0, 0.42]]


def packed(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def row(image: str = "17", **cells: str) -> str:
    named = {"image_id": image, "image_w": "100", "image_h": "50", "num_boxes": "2", "boxes": packed(BOXES)}
    return "\t".join((named | {"features": packed(FEATURES)} | cells).values())


def table(folder: Path, *rows: str) -> Path:
    (folder / "x.tsv").write_text("\n".join(rows) + "\n")
    return folder / "x.tsv"


def folder(path: Path, **arrays: Any) -> Path:
    np.savez(path / "17.npz", **arrays)
    return path


def same(image: DetectedImage) -> None:
    np.testing.assert_array_equal(image.features, FEATURES)
    np.testing.assert_allclose(image.boxes, SHARES, rtol=1e-6)
    assert {image.features.dtype, image.boxes.dtype} == {np.dtype(np.float32)}


def test_bottom_up_s_table(tmp_path: Path):
    source = open_regions(table(tmp_path, row("3"), row("17"), row("x", num_boxes="1")))
    assert len(source) == 3 and "17" in source and "4" not in source
    same(source.load("17"))
    with pytest.raises(KeyError):
        source.load("4")


def test_lxmert_s_table(tmp_path: Path):
    between = [packed(np.zeros(2, dtype=np.float32))] * 4
    cells = ["17", "50", "100", *between, "2", packed(BOXES), packed(FEATURES)]
    same(open_regions(table(tmp_path, "\t".join(cells))).load("17"))


PLAIN: dict[str, Any] = {"features": FEATURES, "boxes": BOXES, "image_w": 100, "image_h": 50}
BOTTOM_UP: dict[str, Any] = {"bbox": BOXES, "image_w": 100, "image_h": 50, "num_bbox": 2}


@pytest.mark.parametrize(
    "arrays", [PLAIN, BOTTOM_UP | {"x": FEATURES}, BOTTOM_UP | {"x": FEATURES.T, "info": np.array({"a": 1})}]
)
def test_one_file_per_image(arrays: dict[str, Any], tmp_path: Path):
    source = open_regions(folder(tmp_path, **arrays))
    assert len(source) == 1
    same(source.load("17"))


def test_uniters_file_has_relative_boxes_and_class_probabilities(tmp_path: Path):
    shares = np.array(SHARES)
    sides = np.stack([shares[:, 2] - shares[:, 0], shares[:, 3] - shares[:, 1]], 1)
    corners = np.concatenate([shares[:, :4], sides], 1).astype(np.float32)
    labels = np.full((2, 5), 0.2, dtype=np.float16)
    source = open_regions(folder(tmp_path, features=FEATURES.astype(np.float16), norm_bb=corners, soft_labels=labels))
    same(source.load("17"))
    classes = source.load("17").classes
    assert classes is not None and classes.dtype == np.float32 and classes.shape == (2, 5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(), "a\tb\tc"], "row 2: expected 6 columns .*, got 3"),
        ([row("1"), row("2"), row("1")], "row 3: '1' is also in row 1"),
        ([], "no rows"),
        ([row("é")], "row 1, 'image_id': not ASCII"),
    ],
)
def test_a_file_that_is_not_a_table_raises(rows: list[str], message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        open_regions(table(tmp_path, *rows))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"num_boxes": "3"}, "'boxes': expected float32 values in 3 rows, got 32 bytes"),
        ({"num_boxes": "0"}, "'num_boxes': must be an integer in"),
        ({"num_boxes": "5000"}, "'num_boxes': expected at most 1000 regions, got 5000"),
        ({"image_w": "wide"}, "'image_w': must be an integer in"),
        ({"image_h": "-2"}, "'image_h': must be an integer in"),
        ({"features": "!!!!"}, "'features': not base64"),
        ({"features": ""}, "'features': expected float32 values in .* rows, got 0 bytes"),
        ({"features": packed(FEATURES * np.nan)}, "features: has values that are not finite"),
        ({"boxes": packed(BOXES[:, ::-1].copy())}, "boxes: expected finite x1, y1, x2, y2"),
        ({"boxes": packed(FEATURES)}, "boxes: expected shape \\(regions, 4\\), got \\(2, 3\\)"),
    ],
)
def test_an_error_in_a_row_names_file_row_and_column(cells: dict[str, str], message: str, tmp_path: Path):
    source = open_regions(table(tmp_path, row("1"), row("2", **cells)))
    with pytest.raises(BadSample, match=f"x.tsv, row 2, {message}"):
        source.load("2")
    same(source.load("1"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"features": FEATURES, "boxes": BOXES, "image_w": 100},
            "17.npz, 'image_h': missing; the file has boxes, features",
        ),
        (PLAIN | {"features": FEATURES[:1]}, r"features: expected one row for each of 2 boxes, got shape \(1, 3\)"),
        (PLAIN | {"classes": np.ones(2)}, r"classes: expected one row for each of .* boxes, got shape \(2,\)"),
        (PLAIN | {"image_w": 0}, "'image_w': must be an integer in"),
        (PLAIN | {"image_w": np.ones(2)}, "'image_w': must be an integer in"),
        (PLAIN | {"boxes": BOXES[:0], "features": FEATURES[:0]}, "expected 1 to 1000 regions, got 0"),
        (PLAIN | {"note": np.array("words")}, "'note': expected numbers, got <U5"),
        (PLAIN | {"features": np.full((2, 3), 1e300)}, "features: has values that are not finite"),
        (PLAIN | {"features": np.float32(1)}, r"features: expected one row for each of .* boxes, got shape \(\)"),
        (PLAIN | {"boxes": np.float32(1)}, r"boxes: expected shape \(regions, 4\), got \(\)"),
        (
            {"x": np.float32(1), "bbox": BOXES, "image_w": 1, "image_h": 1},
            r"features: expected one row for each of .* boxes, got shape \(\)",
        ),
        ({"features": FEATURES, "norm_bb": np.float32(1)}, r"boxes: expected shape \(regions, 4\), got \(\)"),
    ],
)
def test_an_error_in_a_file_names_it(arrays: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(BadSample, match=message):
        open_regions(folder(tmp_path, **arrays)).load("17")


def test_other_members_of_an_archive_are_ignored(tmp_path: Path):
    source = open_regions(folder(tmp_path, **PLAIN))
    with zipfile.ZipFile(next(tmp_path.rglob("17.npz")), "a") as archive:
        archive.writestr("README", "of the detector")
    same(source.load("17"))


class Runs:
    """Code that a pickle would run."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def test_pickles_are_never_read(tmp_path: Path):
    source = open_regions(folder(tmp_path, **PLAIN | {"features": np.array(Runs(), dtype=object)}))
    with pytest.raises(BadSample, match=r"not an \.npz of plain numbers"):
        source.load("17")
    np.save(tmp_path / "one.npy", np.array({"bbox": Runs()}, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="pickles can run code and are rejected; if you trust it, convert it to"):
        open_regions(tmp_path / "one.npy")


def test_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wide = PLAIN | {"features": np.zeros((2, 5000), dtype=np.float32)}
    path = table(tmp_path, row())
    monkeypatch.setattr(regions, "MAX_ROW", 20_000)
    RegionTable(path)
    np.savez_compressed(tmp_path / "17.npz", allow_pickle=False, **wide)
    assert (tmp_path / "17.npz").stat().st_size < 20_000
    with pytest.raises(BadSample, match="more than 20000"):
        open_regions(tmp_path).load("17")
    monkeypatch.setattr(regions, "MAX_ROW", 50)
    with pytest.raises(DataError, match="row 1: longer than 50 bytes"):
        RegionTable(path)


def test_a_broken_zip_or_an_empty_folder_raises(tmp_path: Path):
    with pytest.raises(DataError, match=r"no \.npz files"):
        open_regions(tmp_path)
    with pytest.raises(DataError, match=r"expected a \.tsv, a folder"):
        open_regions(tmp_path / "nowhere")
    (tmp_path / "17.npz").write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(BadSample, match=r"not an \.npz"):
        open_regions(tmp_path).load("17")


@pytest.mark.parametrize(
    ("descr", "shape", "why"),
    [
        ("<f4", (10**13, 2048), "announces .* more than its 144 bytes"),
        ("<f4", (5,), "ends after 16 of 20 bytes"),
        ("<f4", (37,), "announces .* more than its 144 bytes"),
        ("<f4", (-1, -4), "announces"),
        ("|S1000000000", (3,), "announces"),
        ("|O", (2,), "contains Python objects, which can run code"),
        ("<q9", (2,), ""),
        ("'", (2,), ""),
        ("<f4', 'x': (", (2,), ""),
    ],
)
def test_a_header_that_declares_more_than_its_file_contains_raises(
    tmp_path: Path, descr: str, shape: tuple[int, ...], why: str
):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(16)
    with zipfile.ZipFile(tmp_path / "17.npz", "w") as archive:
        archive.writestr("features.npy", array)
    with pytest.raises(BadSample, match=rf"not an \.npz of plain numbers \(.*{why}"):
        open_regions(tmp_path).load("17")


def test_arrays_equal_those_that_numpy_reads(tmp_path: Path):
    arrays = {
        "rows": np.arange(6, dtype=np.float16).reshape(2, 3), "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "one": np.array(3.5), "none": np.zeros((0, 4)), "turned": np.arange(3, dtype=">i2"), "text": np.array("yes"),
    }  # fmt: skip
    np.savez_compressed(tmp_path / "x.npz", allow_pickle=False, **arrays)
    result = read_npz(tmp_path / "x.npz", 10_000, leave_out=("one",))
    assert result.keys() == arrays.keys() - {"one"}
    for name, array in result.items():
        np.testing.assert_array_equal(array, arrays[name], strict=True)


def test_a_batch_is_padded_at_the_end(tmp_path: Path):
    same_image = open_regions(table(tmp_path, row())).load("17")
    one = DetectedImage(FEATURES[:1], same_image.boxes[:1])
    batch = stack_regions([one, same_image])
    assert batch.mask.tolist() == [[True, False], [True, True]]
    assert torch.equal(batch.features[1], torch.from_numpy(FEATURES))
    assert not batch.features[0, 1].any() and not batch.boxes[0, 1].any() and batch.classes is None
    whole = batch.with_whole_image()
    assert whole.has_whole_image and whole.features.shape == (2, 3, 3) and whole.mask[:, 0].all()
    torch.testing.assert_close(whole.features[:, 0], torch.tensor([[0.0, 1, 2], [1.5, 2.5, 3.5]]))
    assert whole.boxes[0, 0].tolist() == [0, 0, 1, 1, 1] and not whole.detected[:, 0].any()
    with pytest.raises(DataError, match="use regions of one detector"):
        stack_regions([one, DetectedImage(FEATURES[:1, :2], one.boxes)])
    with pytest.raises(DataError, match="use regions of one detector"):
        stack_regions([one, DetectedImage(one.features, one.boxes, np.ones((1, 4), dtype=np.float32))])


@pytest.mark.parametrize("error", [MemoryError(), EOFError(), zlib.error("Error -3"), RuntimeError("is encrypted")])
def test_any_failure_to_read_an_npz_is_one_bad_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    np.savez(tmp_path / "17.npz", **PLAIN)
    source = open_regions(tmp_path)

    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(zipfile.ZipFile, "open", broken)
    with pytest.raises(BadSample, match=rf"not an \.npz of plain numbers \({str(error) or type(error).__name__}\)"):
        source.load("17")


def test_an_npz_that_cannot_be_decompressed_is_a_bad_sample(tmp_path: Path):
    np.savez_compressed(tmp_path / "17.npz", **PLAIN)
    with zipfile.ZipFile(tmp_path / "17.npz") as archive:
        first = archive.infolist()[0]
        at = (
            first.header_offset + 30 + len(first.filename) + 20
        )  # after its header, and the 64-bit sizes that numpy writes
    content = bytearray((tmp_path / "17.npz").read_bytes())
    content[at : at + 8] = b"\xff" * 8
    (tmp_path / "17.npz").write_bytes(content)
    with pytest.raises(BadSample, match=r"not an \.npz of plain numbers"):
        open_regions(tmp_path).load("17")


@pytest.mark.parametrize("cell", [36, 36.0, "36", b" 36", np.int64(36), np.float32(36), np.array(36), np.array([36.0])])
def test_a_count_is_an_integer_in_any_notation(cell: object):
    assert positive_integer(cell, "row 3") == 36


@pytest.mark.parametrize(
    "cell",
    [
        36.7,
        True,
        np.True_,
        np.array([1, 2]),
        "3_6",
        b"3_6",
        "²",
        "36.0",
        "",
        -1,
        0,
        2**20,
        float("nan"),
        float("inf"),
        None,
        [36],
    ],
)
def test_a_value_that_is_not_an_integer_is_not_rounded_to_one(cell: object):
    with pytest.raises(BadSample, match="row 3: must be an integer in"):
        positive_integer(cell, "row 3")
