from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from diptych.data.images import decode as decode_module
from diptych.data.images.decode import decode
from diptych.data.sources.base import BadSample
from tests.data.tiny_data import image_bytes


def saved(image: Pillow.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def test_grey_and_cmyk_become_rgb():
    grey = decode(saved(Pillow.new("L", (4, 3), 77)), "x")
    assert grey.mode == "RGB" and grey.getpixel((0, 0)) == (77, 77, 77)
    cmyk = decode(saved(Pillow.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), "x")
    red, green, blue = np.asarray(cmyk)[5, 5]
    assert red > 200 and green < 60 and blue < 60


@pytest.mark.parametrize("mode,colour", [("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))])
def test_transparent_pixels_are_composited_over_white(mode, colour):
    assert decode(saved(Pillow.new(mode, (3, 3), colour)), "x").getpixel((1, 1)) == (255, 255, 255)


def test_half_transparent_is_mixed_with_white():
    assert decode(saved(Pillow.new("RGBA", (3, 3), (0, 0, 0, 128))), "x").getpixel((0, 0)) == (127, 127, 127)


def test_a_palette_with_a_transparent_entry():
    image = Pillow.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    out = decode(saved(image, transparency=0), "x")
    assert out.getpixel((0, 0)) == (255, 255, 255) and out.getpixel((1, 0)) == (200, 100, 50)


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    out = np.asarray(decode(saved(Pillow.fromarray(values)), "x"))
    assert out[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, format):
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16] = 255  # only the top left is white
    stored = Pillow.fromarray(upright)
    undo = {
        1: None,
        2: Pillow.Transpose.FLIP_LEFT_RIGHT,
        3: Pillow.Transpose.ROTATE_180,
        4: Pillow.Transpose.FLIP_TOP_BOTTOM,
        5: Pillow.Transpose.TRANSPOSE,
        6: Pillow.Transpose.ROTATE_90,
        7: Pillow.Transpose.TRANSVERSE,
        8: Pillow.Transpose.ROTATE_270,
    }[orientation]
    stored = stored if undo is None else stored.transpose(undo)
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    out = np.asarray(decode(saved(stored, format, exif=exif), "x")).astype(int)
    assert out.shape == (32, 48, 3)
    assert abs(out - upright).max() < 60


def test_an_empty_file_and_one_over_pillows_limit_say_so():
    with pytest.raises(BadSample, match="x: not a readable image: the file is empty"):
        decode(b"", "x")
    with pytest.raises(BadSample, match="x: more pixels than the limit of 100000000"):
        decode(saved(Pillow.new("1", (20_000, 20_000))), "x")


def test_an_image_with_broken_exif_is_decoded():
    data = image_bytes(exif=b"Exif\0\0" + b"MM\0\x2a\xff\xff\xff\xff")
    assert decode(data, "x").size == (40, 30)


def test_size_is_checked_before_decoding():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    idat = b"IDAT" + zlib.compress(b"")
    png = b"\x89PNG\r\n\x1a\n"
    for body, size in ((chunk, 13), (idat, len(idat) - 4)):
        png += struct.pack(">I", size) + body + struct.pack(">I", zlib.crc32(body))
    with pytest.raises(BadSample, match=r"bomb|limit"):
        decode(png, "huge.png")
    with pytest.raises(BadSample, match="40 x 30 pixels is more than the limit of 100"):
        decode(image_bytes(), "x", max_pixels=100)


@given(st.integers(0, 700))
@settings(max_examples=30, deadline=None)
def test_a_truncated_jpeg_is_a_bad_sample(cut):
    data = image_bytes(quality=95)
    with pytest.raises(BadSample, match=r"a\.jpg: not a readable image"):
        decode(data[: min(cut, len(data) - 40)], "a.jpg")


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_bytes_give_an_image_or_a_bad_sample(data):
    raw = bytearray(image_bytes(format=data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"]))))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        out = decode(bytes(raw), "x", max_pixels=1_000_000)
    except BadSample:
        return
    assert out.mode == "RGB" and out.width * out.height <= 1_000_000


@given(st.binary(max_size=200))
def test_noise_is_a_bad_sample(raw):
    with pytest.raises(BadSample):
        decode(raw, "x")


@pytest.mark.parametrize("least,expected", [(None, 400), (384, 400), (200, 200), (101, 200), (100, 100), (10, 50)])
def test_large_jpegs_may_be_decoded_smaller_but_never_below_the_minimum(least, expected):
    assert min(decode(image_bytes(size=(400, 612)), "x", min_side=least).size) == expected


@pytest.mark.parametrize("least", [None, 60])
def test_the_fast_decoder_changes_nothing(monkeypatch, least):
    if decode_module.simplejpeg is None:
        pytest.skip("simplejpeg (the extra `fast`) is not installed")
    data = image_bytes(3, (321, 243), quality=90)
    fast = np.asarray(decode(data, "x", min_side=least)).astype(int)
    monkeypatch.setattr(decode_module, "simplejpeg", None)
    slow = np.asarray(decode(data, "x", min_side=least)).astype(int)
    assert fast.shape == slow.shape and abs(fast - slow).max() <= 1
