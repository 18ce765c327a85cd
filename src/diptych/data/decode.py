"""From the bytes of an image file to an upright RGB picture, whatever the file turns out to be."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image as Pillow

from diptych.data.image_headers import Excessive, check_header, check_scans
from diptych.data.numeric import NotShown, pixel_bytes, to_rgb
from diptych.data.source import BadSample

try:
    import simplejpeg
except ImportError:  # the extra `fast`
    simplejpeg = None

MAX_PIXELS = 100_000_000
MAX_BYTES = (
    6 * MAX_PIXELS
)  # of memory while one picture is decoded: 100 megapixels of RGB or grey, 75 with transparency
MAX_SLOW = 4_000_000  # pixels of formats that Pillow decodes in Python, a microsecond for each number
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # no format that runs another program (EPS)
_ORIENTATION = 0x0112
_TILE_SIZE = (322, 323)  # TIFF's tags
_WEBP_CANVASES = 12  # bytes a pixel: libwebp keeps two canvases of RGBA, Pillow a copy of one


def decode(data: bytes, where: str, *, least: int | None = None, most_pixels: int = MAX_PIXELS) -> Pillow.Image:
    """An upright RGB picture of the first frame. Transparent parts lie over white; numbers of more than 8 bits are scaled
    (see data/numeric.py).

    With `least` a large JPEG may come out smaller (by 2, 4 or 8), its shorter side never below `least` pixels. What the
    file's header announces is checked before anything is decoded: the size against `most_pixels`, the memory it takes
    against MAX_BYTES, a JPEG's scans (image_headers.py). Raises BadSample.
    """
    with _opened(data, where) as picture:
        width, height = picture.size
        if width * height > most_pixels:
            raise Excessive(f"{width} x {height} pixels is more than the limit of {most_pixels}")
        check_scans(data, width * height)
        _check_cost(picture)
        return _decoded(picture, data, least)


def format_of(data: bytes, where: str) -> str:
    """Pillow's name of an image file's format, of which only the header is read. Raises BadSample."""
    with _opened(data, where) as picture:
        return picture.format or ""


@contextmanager
def _opened(data: bytes, where: str) -> Iterator[Pillow.Image]:
    """An image whose header was read. Raises BadSample for whatever is wrong with that, or with what is done with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning and EXIF complaints: the bound is ours
            check_header(data)
            yield Pillow.open(io.BytesIO(data), formats=FORMATS)
    except Pillow.UnidentifiedImageError:
        raise BadSample(
            where, f"not a readable image: none of {', '.join(FORMATS)}, or of a kind that is not read"
        ) from None
    except (Excessive, NotShown) as error:
        raise BadSample(where, str(error)) from None
    except Exception as error:
        raise BadSample(where, f"not a readable image ({type(error).__name__}: {error})") from None


def _check_cost(picture: Pillow.Image) -> None:
    """Raises Excessive where decoding an opened picture, and making RGB of it, would take more than MAX_BYTES or too long."""
    pixels, tags = picture.width * picture.height, getattr(picture, "tag_v2", {})
    if any(tile[0] in Pillow.DECODERS for tile in getattr(picture, "tile", ())) and pixels > MAX_SLOW:
        raise Excessive(f"{picture.format} of this kind is read up to {MAX_SLOW} pixels, not {pixels}; save it as PNG")
    if all(side in tags for side in _TILE_SIZE):  # one tile may be larger than the picture
        pixels = max(pixels, tags[_TILE_SIZE[0]] * tags[_TILE_SIZE[1]])
    each = pixel_bytes(picture)
    if picture.format == "WEBP":
        each += _WEBP_CANVASES
    if picture.info.get("progressive"):
        each += _coefficient_bytes(picture)
    if pixels * each > MAX_BYTES:
        raise Excessive(
            f"{picture.width} x {picture.height} pixels of mode {picture.mode} take {pixels * each} bytes to decode, "
            f"more than the limit of {MAX_BYTES}"
        )


def _coefficient_bytes(picture: Pillow.Image) -> int:
    """Bytes for each pixel in which libjpeg keeps a progressive JPEG's coefficients, two for each of a channel's samples."""
    channels = [(across, down) for _, across, down, _ in getattr(picture, "layer", ())]
    whole = max((across for across, _ in channels), default=1) * max((down for _, down in channels), default=1)
    return -(-2 * sum(across * down for across, down in channels) // whole)


def _decoded(picture: Pillow.Image, data: bytes, least: int | None) -> Pillow.Image:
    """The RGB pixels behind an opened header, upright; a JPEG at the smallest scale that keeps `least`."""
    scale = max((s for s in (1, 2, 4, 8) if least and min(picture.size) // s >= least), default=1)
    fast = _decode_fast(data, picture, scale) if picture.format == "JPEG" and picture.mode == "RGB" else None
    if fast is None:
        if scale > 1:
            picture.draft(picture.mode, (picture.width // scale, picture.height // scale))
        picture.load()
    turn = _TURNS.get(_orientation(picture))  # only now: loading a TIFF turns it
    decoded = to_rgb(picture, data) if fast is None else fast
    return decoded if turn is None else decoded.transpose(turn)


def _decode_fast(data: bytes, picture: Pillow.Image, scale: int) -> Pillow.Image | None:
    """The same pixels from simplejpeg; None without it, or where it is stricter than Pillow about a flawed file."""
    if simplejpeg is None:
        return None
    width, height = (-(-side // scale) for side in picture.size)
    try:
        return Pillow.fromarray(simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width))
    except ValueError:
        return None


def _orientation(picture: Pillow.Image) -> int:
    """EXIF's orientation, 1 (upright) where it is broken: a bad note is no reason to lose the picture."""
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises whatever its TIFF parser meets: SyntaxError, struct.error, KeyError and others
        return 1


_TURNS = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
