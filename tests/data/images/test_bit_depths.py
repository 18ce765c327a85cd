"""Every mode and bit depth of image files, with greys and colours computed by hand."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from diptych.data.images.decode import decode
from diptych.data.sources.base import BadSample

BLACK, WHITE = [0] * 3, [255] * 3


def saved(image: Pillow.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def tiff(values: np.ndarray, *, kind: int, photometric: int = 1, bits: int | None = None, order: Any = "<") -> bytes:
    """An uncompressed TIFF of one strip. `kind`: 1 unsigned, 2 signed, 3 floating point."""
    height, width, *channels = values.shape
    body = values.astype(values.dtype.newbyteorder(order)).tobytes()
    bits = values.itemsize * 8 if bits is None else bits
    short = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, photometric),
        (277, channels[0] if channels else 1),
    ]
    tags = [(t, 3, v) for t, v in short] + [(278, 4, height), (279, 4, len(body)), (339, 3, kind)]
    at = 8 + 2 + 12 * (len(tags) + 1) + 4
    spread = b""
    if channels:
        tags[2], spread = (258, 3, at), struct.pack(f"{order}{channels[0]}H", *[bits] * channels[0])
    tags.append((273, 4, at + len(spread)))
    made = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(tags))
    for tag, size, value in sorted(tags):
        many = channels[0] if channels and tag == 258 else 1
        field = struct.pack(order + ("I" if size == 4 or many > 2 else "H"), value).ljust(4, b"\0")
        made += struct.pack(f"{order}HHI", tag, size, many) + field
    return made + bytes(4) + spread + body


def png(depth: int, colour: int, rows: list[bytes], dim: int, transparent: bytes = b"", exif: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", dim, len(rows), depth, colour, 0, 0, 0))
    marks = (chunk(b"tRNS", transparent) if transparent else b"") + (chunk(b"eXIf", exif) if exif else b"")
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + marks + body + chunk(b"IEND", b"")


def greys(data: bytes) -> list[int]:
    out = decode(data, "x")
    assert out.mode == "RGB"
    values = np.asarray(out)
    assert (values[..., 0] == values[..., 1]).all() and (values[..., 0] == values[..., 2]).all()
    return values[..., 0].ravel().tolist()


def colours(data: bytes) -> list[list[int]]:
    return np.asarray(decode(data, "x")).reshape(-1, 3).tolist()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (np.array([[0, 257, 32896, 65535]], np.uint16), 1, [0, 1, 128, 255]),
        (np.array([[-100, 0, 100, 50]], np.int16), 2, [0, 128, 255, 191]),  # 127.5 and 191.25
        (np.array([[-(2**31), 0, 2**31 - 1, 2**30]], np.int32), 2, [0, 128, 255, 191]),
        (np.array([[0.0, 0.5, 1.0, 0.2]], np.float32), 3, [0, 128, 255, 51]),
        (np.array([[-1e30, 0, 1e30, 5e29]], np.float32), 3, [0, 128, 255, 191]),
        (np.array([[100.0, 101.0, 102.0, 100.4]], np.float32), 3, [0, 128, 255, 51]),
        (np.array([[1e-45, 0, 7e-45, 0]], np.float32), 3, [51, 0, 255, 0]),  # the five smallest steps above 0
    ],
    ids=["16", "signed 16", "signed 32", "float", "float large", "float narrow", "float tiny"],
)
def test_values_of_a_tiff(values: np.ndarray, kind: int, expected: list[int], order: str):
    assert greys(tiff(values, kind=kind, order=order)) == expected


def test_unsigned_32_bits_do_not_wrap():
    values = np.array([[0, 2**32 - 1, 2**31, 2**30]], np.uint32)
    assert greys(tiff(values, kind=1)) == [0, 255, 128, 64]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (np.array([[0, 65535, 257]], np.uint16), 1, [255, 0, 254]),
        (np.array([[0, 1, 0.2]], np.float32), 3, [255, 0, 204]),
        (np.array([[0, 255, 1]], np.uint8), 1, [255, 0, 254]),
    ],
)
def test_images_with_white_as_zero_are_inverted(values: np.ndarray, kind: int, expected: list[int]):
    assert greys(tiff(values, kind=kind, photometric=0)) == expected


def test_twelve_bits_are_scaled_to_their_own_white():
    """Two values in three bytes: 0x000 and 0xFFF, 0x111 and 0x800."""
    packed = np.frombuffer(bytes([0x00, 0x0F, 0xFF, 0x11, 0x18, 0x00]), np.uint8)[None]
    data = bytearray(tiff(packed, kind=1, bits=12))
    at = data.index(struct.pack("<HHI", 256, 3, 1)) + 8
    data[at : at + 2] = struct.pack("<H", 4)
    assert greys(bytes(data)) == [0, 255, 17, 128]  # 273/4095 and 2048/4095 of 255


@pytest.mark.parametrize(("scale", "kind"), [(b"-1.0", "<f4"), (b"1.0", ">f4")])
def test_a_pfm_is_stored_bottom_up_and_declares_its_range(scale: bytes, kind: str):
    rows = np.array([[0, 5], [10, 2]], kind)
    assert greys(b"Pf 2 2 " + scale + b"\n" + rows.tobytes()) == [255, 51, 0, 128]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"P5 3 1 65535\n" + struct.pack(">3H", 0, 257, 65535), [0, 1, 255]),
        (b"P5 3 1 1000\n" + struct.pack(">3H", 0, 500, 1000), [0, 128, 255]),
        (b"P5 # a comment\n3 1 255\n" + bytes([0, 7, 255]), [0, 7, 255]),
        (b"P2 3 1 4\n0 1 4\n", [0, 64, 255]),
        (b"P1 3 1\n0 1 0\n", [255, 0, 255]),
    ],
)
def test_portable_greymaps_are_scaled_by_the_maximum_of_their_header(data: bytes, expected: list[int]):
    assert greys(data) == expected


def test_sixteen_bit_colours_keep_their_upper_byte():
    values = np.array([[[0, 0x7FFF, 0xFFFF], [0x0100, 0x8000, 0xFF00]]], np.uint16)
    expected = [[0, 127, 255], [1, 128, 255]]
    assert colours(png(16, 2, [values.astype(">u2").tobytes()], 2)) == expected
    for order in "<>":
        assert colours(tiff(values, kind=1, photometric=2, order=order)) == expected


def test_sixteen_bits_with_alpha_are_composited_over_white():
    """Opaque, half and clear: 0x80 of 255 over white is 127 for black."""
    row = struct.pack(">12H", *[0, 0, 0, 0xFFFF], *[0, 0, 0, 0x8080], *[0, 0, 0, 0])
    assert colours(png(16, 6, [row], 3)) == [BLACK, [127] * 3, WHITE]
    assert colours(png(16, 4, [struct.pack(">6H", 0, 0xFFFF, 0, 0x8080, 0, 0)], 3)) == [BLACK, [127] * 3, WHITE]


@pytest.mark.parametrize(
    ("depth", "row", "key", "width", "expected"),
    [
        (1, bytes([0b01000000]), 0, 2, [255, 255]),  # black is transparent
        (1, bytes([0b01000000]), 1, 2, [0, 255]),
        (2, bytes([0b00011011]), 1, 4, [0, 255, 170, 255]),  # 85 is transparent
        (4, bytes([0x0F, 0x3C]), 3, 4, [0, 255, 255, 204]),
        (8, bytes([0, 7, 9, 255]), 7, 4, [0, 255, 9, 255]),
        (8, bytes([0, 7, 9, 255]), 0x0107, 4, [0, 255, 9, 255]),  # bits above the depth do not count
        (16, struct.pack(">4H", 0, 0x1234, 0x1235, 0xFFFF), 0x1234, 4, [0, 255, 18, 255]),
        (16, struct.pack(">4H", 0, 1, 2, 0xFFFF), 0, 4, [255, 0, 0, 255]),
    ],
)
def test_a_transparent_grey_is_compared_at_the_depth_of_the_file(depth, row, key, width, expected):
    assert greys(png(depth, 0, [row], width, struct.pack(">H", key))) == expected


def test_a_transparent_colour_is_compared_in_all_of_its_bits():
    near = struct.pack(">9H", 0x1234, 0x5678, 0x9ABC, 0x1234, 0x5678, 0x9ABD, 0, 0, 0)
    data = png(16, 2, [near], 3, struct.pack(">3H", 0x1234, 0x5678, 0x9ABC))
    assert colours(data) == [WHITE, [0x12, 0x56, 0x9A], BLACK]
    assert colours(png(8, 2, [bytes([1, 2, 3, 1, 2, 4])], 2, struct.pack(">3H", 1, 2, 3))) == [WHITE, [1, 2, 4]]


def test_a_transparent_colour_is_rotated_with_the_image():
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"  # orientation 3, rotated by 180 degrees
    row = struct.pack(">6H", 1, 1, 1, 0x0200, 0x0200, 0x0200)
    assert colours(png(16, 2, [row], 2, struct.pack(">3H", 1, 1, 1), exif)) == [[2] * 3, WHITE]


@pytest.mark.parametrize(
    ("image", "format", "expected"),
    [
        (Pillow.new("1", (1, 1), 1), "PNG", WHITE),
        (Pillow.new("L", (1, 1), 77), "TIFF", [77] * 3),
        (Pillow.new("LA", (1, 1), (77, 255)), "TIFF", [77] * 3),
        (Pillow.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF", [255, 0, 0]),
        (Pillow.new("CMYK", (1, 1), (0, 0, 0, 255)), "TIFF", BLACK),
        (Pillow.new("LAB", (1, 1), (255, 128, 128)), "TIFF", WHITE),
        (Pillow.new("LAB", (1, 1), (0, 128, 128)), "TIFF", BLACK),
        (Pillow.new("RGBA", (1, 1), (9, 9, 9, 0)), "WEBP", WHITE),
        (Pillow.new("RGBX", (1, 1), (1, 2, 3, 0)), "TIFF", [1, 2, 3]),
        (Pillow.new("YCbCr", (1, 1), (255, 128, 128)), "TIFF", WHITE),
    ],
    ids=["1", "L", "LA", "CMYK", "CMYK black", "LAB white", "LAB black", "clear webp", "RGBX", "YCbCr"],
)
def test_other_modes(image: Pillow.Image, format: str, expected: list[int]):
    (actual,) = colours(saved(image, format, **({"lossless": True} if format == "WEBP" else {})))
    assert np.abs(np.array(actual) - expected).max() <= 1


def test_premultiplied_grey():
    data = saved(Pillow.new("LA", (1, 1), (64, 128)), "TIFF")
    at = data.index(struct.pack("<HHI", 338, 3, 1)) + 8
    assert data[at] == 2  # straight alpha; 1 is premultiplied: 64 of 128 is half, and half of that over white
    assert greys(data) == [159] and greys(data[:at] + b"\1" + data[at + 1 :]) == [191]


def test_a_palette_of_any_depth():
    for size in (2, 4, 16, 256):
        image = Pillow.new("P", (2, 1))
        image.putpalette([10, 20, 30, 200, 100, 50] + [0] * 3 * (size - 2))
        image.putpixel((1, 0), 1)
        for format in ("PNG", "GIF", "BMP", "TIFF"):
            assert colours(saved(image, format)) == [[10, 20, 30], [200, 100, 50]], (size, format)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (tiff(np.array([[0, np.nan, 1]], np.float32), kind=3), "not finite"),
        (tiff(np.array([[0, np.inf, 1]], np.float32), kind=3), "not finite"),
        (tiff(np.array([[-np.inf, np.inf, 1]], np.float32), kind=3), "not finite"),
        (b"Pf 1 1 -1.0\n" + np.array([np.nan], "<f4").tobytes(), "not finite"),
        (tiff(np.full((2, 2), 0.5, np.float32), kind=3), "all its values are 0.5"),
        (tiff(np.full((2, 2), 7, np.int32), kind=2), "all its values are 7"),
        (
            tiff(np.array([[0, 3, 9, 60]], np.uint16), kind=1),
            "0 to 60 between 0 and 65535, become one or two grey levels",
        ),
        (
            tiff(np.array([[0, 3, 9, 255]], np.uint16), kind=1),
            "0 to 255 between 0 and 65535, become one or two grey levels",
        ),
        (tiff(np.r_[np.linspace(0, 1, 4999), 1e30].astype(np.float32)[None], kind=3), "nearly all of its pixels"),
        (tiff(np.zeros((2, 2, 3), np.float32), kind=3, photometric=2), "not a readable image"),
        (tiff(np.zeros((2, 2), np.float64), kind=3), "not a readable image"),
        (b"PF 1 1 -1.0\n" + bytes(12), "not a readable image"),
    ],
    ids=[
        "nan",
        "inf",
        "both inf",
        "pfm nan",
        "flat float",
        "flat int",
        "dark 16",
        "8 bits in 16",
        "outlier",
        "float rgb",
        "64",
        "PF",
    ],
)
def test_values_that_would_be_all_black_or_white_are_a_bad_sample_with_its_reason(data: bytes, why: str):
    with pytest.raises(BadSample, match=why):
        decode(data, "x")


def test_bands_converted_one_by_one_give_the_whole_image(monkeypatch: pytest.MonkeyPatch):
    values = np.arange(35, dtype=np.float32).reshape(7, 5)
    whole = greys(tiff(values, kind=3))
    clear = png(16, 2, [struct.pack(">6H", k, k, k, 9, 9, 9) for k in range(7)], 2, struct.pack(">3H", 4, 4, 4))
    expected = colours(clear)
    monkeypatch.setattr("diptych.data.images.decode._BAND", 10)
    assert greys(tiff(values, kind=3)) == whole == [round(k / 34 * 255) for k in range(35)]
    assert colours(clear) == expected and expected[8] == WHITE and expected[6] == BLACK
