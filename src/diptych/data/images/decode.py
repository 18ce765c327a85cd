"""Decoding of image files to upright 8-bit RGB images, with limits on size and memory.

Images of more than 8 bits are scaled to 8 bits by these rules:

- 16-bit unsigned grey: 0 is black and 65,535 white; 12-bit grey (TIFF): 4,095 is white; PGM: its own maximum is white.
- 16-bit signed, 32-bit integer and floating-point grey (TIFF, PFM) have no agreed white: the image's minimum is black,
  its maximum white, linearly between.
- TIFF's "white is zero" inverts either.
- 16-bit colour keeps its upper 8 bits.
- PNG's transparent colour is compared at the file's own depth, before scaling, and becomes white.

Images that would come out all black or all white are rejected: values that are not finite; a constant image that sets
its own range; values that differ but fall into one or two adjacent levels of 256 (for images that set their own range:
all but one in a thousand in one level).
"""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from diptych.data.images.headers import Excessive, check_header, check_scans
from diptych.data.sources.base import BadSample

_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # others: 4
_BAND = 1 << 20  # pixels converted at a time, so that no second whole image is in memory
_ONE_LEVEL = 0.999  # largest share of pixels in one grey level, for images that set their own range

Box = tuple[int, int, int, int]


class UnreadableImage(ValueError):
    """An image whose values cannot be represented in 8 bits."""


def pixel_bytes(image: Pillow.Image) -> int:
    """Bytes of memory per pixel: of the image that Pillow decodes plus, if it is converted, of the RGB image."""
    own = _MODE_BYTES.get(image.mode, 4)
    return own if image.mode == "RGB" and "transparency" not in image.info else own + 4


def to_rgb(image: Pillow.Image, data: bytes | None) -> Pillow.Image:
    """RGB version of a decoded image of any mode; `data` is its file, if there is one. Raises UnreadableImage."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    transparent = _colour_key(image, data)
    convert = _grey_conversion(image) if image.mode[0] in "IF" else _flatten
    canvas = Pillow.new("RGB", image.size)
    for box in _bands(image):
        band = convert(image.crop(box))
        if transparent is not None:
            band.paste((255, 255, 255), mask=transparent(box))
        canvas.paste(band, box[:2])
    if _sets_own_range(image) and max(canvas.histogram()[:256]) > _ONE_LEVEL * image.width * image.height:
        raise UnreadableImage(
            "nearly all of its pixels become one grey level between its minimum and maximum; save it in 8 bits"
        )
    return canvas


def _bands(image: Pillow.Image) -> Iterator[Box]:
    """Boxes of whole rows that cover the image."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _flatten(band: Pillow.Image) -> Pillow.Image:
    """RGB colours, composited over white where transparent."""
    if band.mode not in _ALPHA and "transparency" not in band.info:
        return band.convert("RGB")
    band = (band.convert("LA") if band.mode == "La" else band).convert("RGBA")
    return Pillow.alpha_composite(Pillow.new("RGBA", band.size, (255, 255, 255, 255)), band).convert("RGB")


def _sets_own_range(image: Pillow.Image) -> bool:
    """Whether black and white are the image's own minimum and maximum. Not for PGM, which Pillow scales to 16 bits."""
    return image.mode == "F" or (image.mode == "I" and image.format != "PPM")


def _grey_conversion(image: Pillow.Image) -> Callable[[Pillow.Image], Pillow.Image]:
    """Function from grey values of any depth to RGB, by the rules of this module. Raises UnreadableImage."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, (16,))[0]
    unsigned = image.mode == "I" and bits == 32 and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1

    def values(band: Pillow.Image) -> np.ndarray:
        array = np.asarray(band)
        return (array.view(np.uint32) if unsigned else array).astype(np.float64)

    extremes = [(array.min(), array.max()) for box in _bands(image) for array in (values(image.crop(box)),)]
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    if not np.isfinite([*map(sum, extremes)]).all():  # NaN and infinity survive their sum
        raise UnreadableImage("it has values that are not finite")
    black, white = (low, high) if _sets_own_range(image) else (0.0, 2.0**bits - 1)
    if black == white:
        raise UnreadableImage(f"all its values are {low:g}, which is neither black nor white; save it in 8 bits")
    if tags.get(_PHOTOMETRIC) == 0:
        black, white = white, black

    def levels(array: np.ndarray) -> np.ndarray:
        return ((array - black) / (white - black) * 255).clip(0, 255).round().astype(np.uint8)

    if low < high and np.ptp(levels(np.array([low, high])).astype(int)) <= 1:
        raise UnreadableImage(
            f"its values, {low:g} to {high:g} between {black:g} and {white:g}, become one or two grey levels in 8 "
            "bits; save it in 8 bits"
        )
    return lambda band: Pillow.fromarray(levels(values(band))).convert("RGB")


def _colour_key(image: Pillow.Image, data: bytes | None) -> Callable[[Box], Pillow.Image] | None:
    """Mask function, from a box to its transparent pixels, of a PNG whose colour key Pillow compares at another depth.

    Removes the colour key from the image's info, so that Pillow ignores it. None for all other images.
    """
    key = image.info.get("transparency")
    if data is None or image.format != "PNG" or image.mode not in ("L", "I;16", "RGB"):
        return None
    if not isinstance(key, int | tuple):
        return None
    depth = data[24]  # of IHDR, a PNG's first chunk
    spread = 255 // (2**depth - 1) if depth < 8 else 1  # Pillow scales lower depths to 8 bits
    wanted = np.atleast_1d(key) % 2**depth * spread
    lower = None
    if image.mode == "RGB" and depth == 16:
        # Pillow keeps the upper 8 bits; read as little-endian the same file gives the lower 8
        lower = Pillow.open(io.BytesIO(data), formats=("PNG",))
        lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]  # type: ignore[attr-defined]
    del image.info["transparency"]

    def transparent(box: Box) -> Pillow.Image:
        values = np.asarray(image.crop(box)).astype(np.uint16)
        if lower is not None:
            values = values << 8 | np.asarray(lower.crop(box))
        same = values == wanted if values.ndim == 2 else (values == wanted).all(-1)
        return Pillow.fromarray(same.astype(np.uint8) * 255)

    return transparent


try:
    import simplejpeg
except ImportError:  # the extra `fast`
    simplejpeg = None

MAX_PIXELS = 100_000_000
MAX_BYTES = 6 * MAX_PIXELS  # memory to decode one image: 100 megapixels of RGB or grey, 75 with transparency
MAX_SLOW = 4_000_000  # pixels of formats that Pillow decodes in Python, at about a microsecond per value
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # no format that runs another program (EPS)
_ORIENTATION = 0x0112
_TILE_SIZE = (322, 323)  # TIFF tags
_WEBP_CANVASES = 12  # bytes per pixel: libwebp keeps two RGBA canvases, Pillow a copy of one


def decode(data: bytes, where: str, *, min_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Pillow.Image:
    """Upright RGB image of the first frame; transparent parts become white, higher bit depths are scaled to 8 bits.

    The header is checked before anything is decoded: the size against `max_pixels`, the memory needed against
    MAX_BYTES, a JPEG's scans against their limit (images/headers.py).

    Args:
        data: the image file.
        where: its name in messages.
        min_side: allows a large JPEG to be decoded at 1/2, 1/4 or 1/8 of its size while its shorter side stays at least
            `min_side` pixels.
        max_pixels: the largest number of pixels.

    Raises:
        BadSample: the file cannot be read or is over a limit.
    """
    with _opened(data, where) as image:
        _check_size(image, max_pixels)
        check_scans(data, image.width * image.height)
        _check_cost(image)
        return _decoded(image, data, min_side)


def load_image(path: Path, min_side: int | None = None) -> Pillow.Image:
    """The decoded image of a file. Raises BadSample."""
    return decode(read_image_file(path), str(path), min_side=min_side)


def read_image_file(path: Path) -> bytes:
    """Bytes of an image file within the size limit. Raises BadSample."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for its writer
            raise BadSample(str(path), "not a regular file")
        if status.st_size > 4 * MAX_PIXELS:
            raise BadSample(str(path), f"the file is larger than {4 * MAX_PIXELS} bytes")
        return path.read_bytes()
    except OSError as error:
        raise BadSample(str(path), f"cannot be read ({error.strerror})") from None


def from_pillow(image: Pillow.Image, where: str, *, max_pixels: int = MAX_PIXELS) -> Pillow.Image:
    """Upright RGB version of an image that Pillow has opened or made, by the rules of `decode`.

    Differs: of a multi-frame image the current frame; the transparent colour of a 16-bit PNG is Pillow's 8-bit one,
    because the file is not read again.

    Raises:
        BadSample: the image cannot be decoded or is over a limit.
    """
    with _as_bad_sample(where):
        _check_size(image, max_pixels)
        _check_cost(image)
        image.load()
        return _upright(to_rgb(image, None), image)


def format_of(data: bytes, where: str) -> str:
    """Pillow's name of an image file's format; reads only the header. Raises BadSample."""
    with _opened(data, where) as image:
        return image.format or ""


def upright_size(data: bytes, where: str) -> tuple[int, int]:
    """Width and height in pixels of the upright image; reads only the header. Raises BadSample."""
    with _opened(data, where) as image:
        turned = _orientation(image) in SWAPS_SIDES
        return (image.height, image.width) if turned else (image.width, image.height)


@contextmanager
def _opened(data: bytes, where: str) -> Iterator[Pillow.Image]:
    """An image whose header was read. Raises BadSample for any error in it or in the body of the with statement."""
    with _as_bad_sample(where):
        if not data:
            raise UnreadableImage("not a readable image: the file is empty")
        check_header(data)
        yield Pillow.open(io.BytesIO(data), formats=FORMATS)


@contextmanager
def _as_bad_sample(where: str) -> Iterator[None]:
    """Context in which any error is raised as BadSample."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's bomb warning and EXIF complaints: the limits are ours
            yield
    except Pillow.UnidentifiedImageError:
        raise BadSample(
            where,
            f"not a readable image: none of {', '.join(FORMATS)}, or an unsupported variant of one; convert it, for example to JPEG",
        ) from None
    except Pillow.DecompressionBombError:
        raise BadSample(where, f"more pixels than the limit of {MAX_PIXELS}") from None
    except (Excessive, UnreadableImage) as error:
        raise BadSample(where, str(error)) from None
    except Exception as error:
        raise BadSample(where, f"not a readable image ({type(error).__name__}: {error})") from None


def _check_size(image: Pillow.Image, max_pixels: int) -> None:
    """Raises Excessive if an opened image has more than `max_pixels` pixels, UnreadableImage if it has none."""
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise Excessive(f"{image.width} x {image.height} pixels is more than the limit of {max_pixels}")
    if not pixels:
        raise UnreadableImage(f"{image.width} x {image.height} pixels is no image")


def _check_cost(image: Pillow.Image) -> None:
    """Raises Excessive if decoding and converting an opened image would exceed MAX_BYTES or take too long."""
    pixels, tags = image.width * image.height, getattr(image, "tag_v2", {})
    if any(tile[0] in Pillow.DECODERS for tile in getattr(image, "tile", ())) and pixels > MAX_SLOW:
        raise Excessive(f"{image.format} of this kind is read up to {MAX_SLOW} pixels, got {pixels}; save it as PNG")
    if all(side in tags for side in _TILE_SIZE):  # one tile may be larger than the image
        pixels = max(pixels, tags[_TILE_SIZE[0]] * tags[_TILE_SIZE[1]])
    each = pixel_bytes(image)
    if image.format == "WEBP":
        each += _WEBP_CANVASES
    if image.info.get("progressive"):
        each += _coefficient_bytes(image)
    if pixels * each > MAX_BYTES:
        raise Excessive(
            f"{image.width} x {image.height} pixels of mode {image.mode} take {pixels * each} bytes to decode, "
            f"more than the limit of {MAX_BYTES}"
        )


def _coefficient_bytes(image: Pillow.Image) -> int:
    """Bytes per pixel of a progressive JPEG's coefficients in libjpeg, two for each sample of a channel."""
    channels = [(across, down) for _, across, down, _ in getattr(image, "layer", ())]
    whole = max((across for across, _ in channels), default=1) * max((down for _, down in channels), default=1)
    return -(-2 * sum(across * down for across, down in channels) // whole)


def _decoded(image: Pillow.Image, data: bytes, min_side: int | None) -> Pillow.Image:
    """Upright RGB pixels of an image whose header was read; a JPEG at the smallest scale that keeps `min_side`."""
    scale = max((s for s in (1, 2, 4, 8) if min_side and min(image.size) // s >= min_side), default=1)
    fast = _decode_fast(data, image, scale) if image.format == "JPEG" and image.mode == "RGB" else None
    if fast is None:
        if scale > 1:
            image.draft(image.mode, (image.width // scale, image.height // scale))
        image.load()
    return _upright(to_rgb(image, data) if fast is None else fast, image)


def _upright(pixels: Pillow.Image, image: Pillow.Image) -> Pillow.Image:
    """`pixels` turned by the EXIF orientation of `image`, which is loaded, because Pillow rotates a TIFF meanwhile."""
    turn = _TRANSPOSE.get(_orientation(image))
    return pixels if turn is None else pixels.transpose(turn)


def _decode_fast(data: bytes, image: Pillow.Image, scale: int) -> Pillow.Image | None:
    """The image decoded by simplejpeg, with equal pixels; None if that is not installed, or rejects the file."""
    if simplejpeg is None:
        return None
    width, height = (-(-side // scale) for side in image.size)
    try:
        return Pillow.fromarray(simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width))
    except ValueError:
        return None


def _orientation(image: Pillow.Image) -> int:
    """EXIF orientation; 1 (upright) if the EXIF data is broken, so that the image is not lost."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises whatever its TIFF parser hits: SyntaxError, struct.error, KeyError and others
        return 1


_TRANSPOSE = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
SWAPS_SIDES = (5, 6, 7, 8)
"""EXIF orientations of images that lie on their side."""
