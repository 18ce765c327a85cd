"""Image files that declare more than they need are rejected in bounded time and memory; valid ones are read."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from diptych.data.images import decode as decode_module
from diptych.data.images.decode import decode
from diptych.data.sources.base import BadSample


def saved(image: Pillow.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(before: bytes = b"", after: bytes = b"", size: tuple[int, int] = (4, 4), colour: int = 0) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(20)))
    return b"\x89PNG\r\n\x1a\n" + head + before + body + after + chunk(b"IEND")


def scans(dim: int, height: int, times: int) -> bytes:
    data = saved(Pillow.new("L", (dim, height), 128), "JPEG", progressive=True, quality=5)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * times + b"\xff\xd9"


def gif(extensions: bytes) -> bytes:
    data = saved(Pillow.new("P", (2, 2)), "GIF")
    at = 13 + (3 << (data[10] & 7) + 1)
    return data[:at] + extensions + data[at:]


def tiff(*tags: tuple[int, int, int, int | bytes], big: bool = False) -> bytes:
    wide, word = (20, "Q") if big else (12, "I")
    at = (16 if big else 8) + struct.calcsize("<" + word) + wide * len(tags) + 16
    made, payload = struct.pack("<" + ("Q" if big else "H"), len(tags)), b""
    for tag, kind, count, value in tags:
        offset = at + len(payload) if isinstance(value, bytes) else value
        made += struct.pack(f"<HH{word}{word}", tag, kind, count, offset)
        payload += value if isinstance(value, bytes) else b""
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) if big else struct.pack("<2sHI", b"II", 42, 8)
    return (head + made).ljust(at, b"\0") + payload


GREY = ((256, 3, 1, 10), (257, 3, 1, 10), (258, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1))
STRIPS = np.full(1_000_000, 8, "<u4").tobytes()
TILE = (*GREY[:3], (259, 3, 1, 8), *GREY[3:], (322, 4, 1, 30000), (323, 4, 1, 30000), (324, 4, 1, 200), (325, 4, 1, 99))
LARGE = (10_000, 10_000)

CRAFTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "1,600 scans": (lambda: scans(3000, 2000, 1600), "its 160. scans of 6000000 pixels"),
    "comments": (lambda: b"\xff\xd8" + b"\xff\xfe\0\x02" * 1_000_000, "more than 13906 markers"),
    "fill bytes": (lambda: b"\xff\xd8" + b"\xff" * 20_000_000, "20000000 bytes of padding at byte 2"),
    "fill bytes, then a marker": (lambda: b"\xff\xd8" + b"\xff" * 20_000_000 + b"\xd9", "bytes of padding at byte 2"),
    "chunks": (lambda: png(before=chunk(b"abCd") * 1_000_000), "more than .* chunks"),
    "chunks behind": (lambda: png(after=chunk(b"abCd") * 1_000_000), "more than .* chunks"),
    "profiles": (lambda: png(chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(10**6))) * 9000), "more than 1 colour profiles"),
    "texts": (lambda: png(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**6))) * 3000), "not a readable image"),
    "gif comments": (lambda: gif(b"\x21\xfe\x01a\0" * 2_000_000), "blocks before its first frame"),
    "gif comment": (lambda: gif(b"\x21\xfe" + (b"\xff" + b"a" * 255) * 50_000 + b"\0"), "blocks before its first frame"),
    "gif nothing": (lambda: gif(b"\1" * 10_000_000), "blocks before its first frame"),
    "strips": (lambda: tiff(*GREY, (273, 4, 10**6, STRIPS), (279, 4, 10**6, STRIPS)), "tag 273 has 1000000 values"),
    "strips, big": (lambda: tiff(*GREY, (273, 16, 10**6, STRIPS * 2), big=True), "tag 273 has 1000000 values"),
    "tags": (lambda: tiff(*GREY, *((40000, 3, 1, 1),) * 20_000), "more than .* tags"),
    "tags, big": (lambda: tiff(*GREY, *((40000, 3, 1, 1),) * 20_000, big=True), "more than .* tags"),
    "one large tile": (lambda: tiff(*TILE), "bytes to decode, more than the limit of 600000000"),
    "32 bits": (
        lambda: saved(Pillow.fromarray(np.zeros(LARGE, np.int32)), "TIFF", compression="tiff_adobe_deflate"),
        "10000 x 10000 pixels of mode I take 800000000 bytes to decode",
    ),
    "float": (
        lambda: saved(Pillow.fromarray(np.zeros(LARGE, np.float32)), "TIFF", compression="tiff_adobe_deflate"),
        "10000 x 10000 pixels of mode F take 800000000 bytes to decode",
    ),
    "transparent": (lambda: png(size=LARGE, colour=6), "10000 x 10000 pixels of mode RGBA take 800000000 bytes"),
    "webp": (lambda: saved(Pillow.new("RGB", (8000, 8000)), "WEBP", method=0, quality=0), "take 1024000000 bytes"),
    "progressive": (lambda: saved(Pillow.new("RGB", LARGE), "JPEG", progressive=True, subsampling=0), "take 1000000000 bytes"),
    "plain ppm": (lambda: b"P3 3000 3000 255\n" + b"1 " * 1_000_000, "read up to 4000000 pixels, got 9000000"),
    "odd ppm": (lambda: b"P6 3000 3000 254\n" + bytes(9_000_000), "read up to 4000000 pixels, got 9000000"),
    "ppm comment": (lambda: b"P6 #" + b"a" * 20_000_000, "header does not end within 4096 bytes"),
    "ppm without pixels": (lambda: b"P6 10000 10000 255\n", "not a readable image"),
    "runs in a bmp": (
        lambda: b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + struct.pack("<IiiHHIIiiII", 40, 9000, 9000, 1, 8, 1, *[0] * 5) + bytes(20000),
        "read up to 4000000 pixels, got 81000000",
    ),
}  # fmt: skip

DECODE = """
import resource, sys
from diptych.data.images.decode import decode
from diptych.data.sources.base import BadSample
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
for path in sys.argv[1:]:
    resource.setrlimit(resource.RLIMIT_CPU, (int(sum(resource.getrusage(0)[:2])) + 10, 300))
    try:
        print(decode(open(path, "rb").read(), "x").size)
    except BadSample as bad:
        print(bad)
"""


@pytest.mark.slow
def test_each_is_rejected_in_seconds_and_in_two_gigabytes(tmp_path: Path):
    for name, (make, _) in CRAFTED.items():
        (tmp_path / name).write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", DECODE, *(str(tmp_path / name) for name in CRAFTED)],
        capture_output=True, text=True, timeout=600, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    messages = dict(zip(CRAFTED, done.stdout.splitlines(), strict=True))
    for name, (_, why) in CRAFTED.items():
        with pytest.raises(BadSample, match=why):
            raise BadSample("x", messages[name].removeprefix("x: "))


@pytest.mark.parametrize(
    "name",
    ["comments", "fill bytes, then a marker", "chunks", "gif nothing", "strips, big", "tags", "transparent", "odd ppm"],
)
def test_a_crafted_file_is_a_bad_sample_with_its_reason(name: str):
    make, why = CRAFTED[name]
    with pytest.raises(BadSample, match=why):
        decode(make(), "x")


def test_valid_files_with_many_parts_are_read():
    image = Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (60, 40, 3), dtype=np.uint8))
    frames = {"save_all": True, "append_images": [image.rotate(90 * k) for k in range(5)]}
    for data in (
        scans(100, 100, 100),
        saved(
            image, "JPEG", progressive=True, restart_marker_rows=1, comment=b"x" * 60_000, icc_profile=bytes(200_000)
        ),
        png(before=chunk(b"tEXt", b"a\0b") * 5000),
        gif(b"\x21\xfe" + (b"\xff" + b"a" * 255) * 500 + b"\0"),
        saved(image, "TIFF", tiffinfo={278: 1}),  # one row per strip
        saved(image, "GIF", **frames),
        saved(image, "WEBP", **frames),
        saved(image, "PNG", **frames),
        saved(image, "TIFF", **frames),
        saved(image, "MPO", **frames),
        b"P6\n# made by\n# somebody\n4 4 # wide\n255\n" + bytes(48),
    ):
        assert decode(data, "x").mode == "RGB"


def test_the_memory_limit_counts_the_bytes_of_a_mode(monkeypatch: pytest.MonkeyPatch):
    """Bytes of 100 pixels: grey 1, RGB 4 more; transparency 4 and 4; RGB itself 4; progressive 4:2:0 3 more."""
    for image, format, options, num_bytes in (
        (Pillow.new("L", (10, 10)), "PNG", {}, 500),
        (Pillow.new("RGB", (10, 10)), "PNG", {}, 400),
        (Pillow.new("RGBA", (10, 10)), "PNG", {}, 800),
        (Pillow.new("RGB", (10, 10)), "WEBP", {}, 1600),
        (Pillow.new("RGB", (10, 10)), "JPEG", {}, 400),
        (Pillow.new("RGB", (10, 10)), "JPEG", {"progressive": True, "subsampling": 2}, 700),
        (Pillow.new("RGB", (10, 10)), "JPEG", {"progressive": True, "subsampling": 0}, 1000),
    ):
        data = saved(image, format, **options)
        monkeypatch.setattr(decode_module, "MAX_BYTES", num_bytes)
        assert decode(data, "x").size == (10, 10)
        monkeypatch.setattr(decode_module, "MAX_BYTES", num_bytes - 1)
        with pytest.raises(
            BadSample, match=f"take {num_bytes} bytes to decode, more than the limit of {num_bytes - 1}"
        ):
            decode(data, "x")
