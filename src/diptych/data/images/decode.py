"""RGB from every mode in which Pillow opens a picture, the numeric ones scaled to 8 bits by a stated rule.

- 16-bit unsigned grey: 0 is black, 65,535 white; 12-bit grey (TIFF): 4,095 white. A PGM's own maximum is white.
- 16-bit signed, 32-bit integer and floating-point grey (TIFF, PFM) have no agreed white: the picture's lowest number is
  black, its highest white, linearly between.
- TIFF's "white is zero" turns either round.
- Of 16-bit colour the upper 8 bits are kept.
- PNG's transparent colour is compared at the file's own depth, before anything is scaled, and becomes white.

Refused, instead of a picture that is all black or white: numbers that are not finite; one and the same number everywhere,
where the picture sets its own range; numbers that differ but fall into one or two neighbouring ones of 256 levels (of own
range: all but one in a thousand into one).

From the bytes of an image file to an upright RGB picture, whatever the file turns out to be.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image as Pillow

from diptych.data.images.headers import Excessive, check_header, check_scans
from diptych.data.sources.base import BadSample

_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # others: 4
_BAND = 1 << 20  # pixels that are converted at a time, so that no second whole picture is held
_ONE_LEVEL = 0.999  # share of the pixels that must not be one level where a picture sets its own range

Box = tuple[int, int, int, int]


class UnreadableImage(ValueError):
    """A picture whose numbers cannot be shown in 8 bits."""


def pixel_bytes(picture: Pillow.Image) -> int:
    """Bytes of memory for each pixel: as Pillow decodes it, and the RGB picture that is made of it."""
    own = _MODE_BYTES.get(picture.mode, 4)
    return own if picture.mode == "RGB" and "transparency" not in picture.info else own + 4


def to_rgb(picture: Pillow.Image, data: bytes) -> Pillow.Image:
    """The RGB picture of a decoded one of any mode; `data` is its file. Raises NotShown."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    transparent = _colour_key(picture, data)
    convert = _scaling(picture) if picture.mode[0] in "IF" else _flattened
    canvas = Pillow.new("RGB", picture.size)
    for box in _bands(picture):
        band = convert(picture.crop(box))
        if transparent is not None:
            band.paste((255, 255, 255), mask=transparent(box))
        canvas.paste(band, box[:2])
    if _own_range(picture) and max(canvas.histogram()[:256]) > _ONE_LEVEL * picture.width * picture.height:
        raise UnreadableImage(
            "nearly all of its numbers become one grey between its lowest and highest; save it in 8 bits"
        )
    return canvas


def _bands(picture: Pillow.Image) -> Iterator[Box]:
    rows = max(1, _BAND // picture.width)
    for top in range(0, picture.height, rows):
        yield 0, top, picture.width, min(top + rows, picture.height)


def _flattened(band: Pillow.Image) -> Pillow.Image:
    """Colours, over white where they are transparent."""
    if band.mode not in _ALPHA and "transparency" not in band.info:
        return band.convert("RGB")
    band = (band.convert("LA") if band.mode == "La" else band).convert("RGBA")
    return Pillow.alpha_composite(Pillow.new("RGBA", band.size, (255, 255, 255, 255)), band).convert("RGB")


def _own_range(picture: Pillow.Image) -> bool:
    """Whether black and white are the lowest and highest number of the picture itself. Pillow scales a PGM to 16 bits."""
    return picture.mode == "F" or (picture.mode == "I" and picture.format != "PPM")


def _scaling(picture: Pillow.Image) -> Callable[[Pillow.Image], Pillow.Image]:
    """From numbers to greys, by the rule above. Raises NotShown."""
    tags = getattr(picture, "tag_v2", {})
    bits = tags.get(_BITS, (16,))[0]
    unsigned = picture.mode == "I" and bits == 32 and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1

    def numbers(band: Pillow.Image) -> np.ndarray:
        found = np.asarray(band)
        return (found.view(np.uint32) if unsigned else found).astype(np.float64)

    extremes = [(found.min(), found.max()) for box in _bands(picture) for found in (numbers(picture.crop(box)),)]
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    if not np.isfinite([*map(sum, extremes)]).all():  # NaN and infinity survive their sum
        raise UnreadableImage("it holds numbers that are not finite")
    black, white = (low, high) if _own_range(picture) else (0.0, 2.0**bits - 1)
    if black == white:
        raise UnreadableImage(f"every number in it is {low:g}, which is neither black nor white; save it in 8 bits")
    if tags.get(_PHOTOMETRIC) == 0:
        black, white = white, black

    def levels(found: np.ndarray) -> np.ndarray:
        return ((found - black) / (white - black) * 255).clip(0, 255).round().astype(np.uint8)

    if low < high and np.ptp(levels(np.array([low, high])).astype(int)) <= 1:
        raise UnreadableImage(
            f"its numbers, {low:g} to {high:g} between {black:g} and {white:g}, become one or two greys in 8 bits; "
            "save it in 8 bits"
        )
    return lambda band: Pillow.fromarray(levels(numbers(band))).convert("RGB")


def _colour_key(picture: Pillow.Image, data: bytes) -> Callable[[Box], Pillow.Image] | None:
    """Where a PNG is transparent, as a mask for a part of it, if that is one grey or colour of a depth that Pillow compares at
    another; the picture then forgets it. None for all other pictures.
    """
    key = picture.info.get("transparency")
    if picture.format != "PNG" or picture.mode not in ("L", "I;16", "RGB") or not isinstance(key, int | tuple):
        return None
    depth = data[24]  # a PNG begins with IHDR
    spread = 255 // (2**depth - 1) if depth < 8 else 1  # Pillow spreads fewer bits over 8
    wanted = np.atleast_1d(key) % 2**depth * spread
    lower = None
    if (
        picture.mode == "RGB" and depth == 16
    ):  # Pillow keeps the upper 8 bits; of little-endian numbers these were the lower
        lower = Pillow.open(io.BytesIO(data), formats=("PNG",))
        lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]  # type: ignore[attr-defined]
    del picture.info["transparency"]

    def transparent(box: Box) -> Pillow.Image:
        found = np.asarray(picture.crop(box)).astype(np.uint16)
        if lower is not None:
            found = found << 8 | np.asarray(lower.crop(box))
        same = found == wanted if found.ndim == 2 else (found == wanted).all(-1)
        return Pillow.fromarray(same.astype(np.uint8) * 255)

    return transparent


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
    except (Excessive, UnreadableImage) as error:
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
