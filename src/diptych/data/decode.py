"""From the bytes of an image file to an upright RGB picture, whatever the file turns out to be."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image as Pillow

from diptych.data.source import BadSample

try:
    import simplejpeg
except ImportError:  # the extra `fast`
    simplejpeg = None

MAX_PIXELS = 100_000_000  # a 100-megapixel picture takes 300 MB as RGB
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # no format that runs another program (EPS)
_ORIENTATION = 0x0112


def decode(data: bytes, where: str, *, least: int | None = None, most_pixels: int = MAX_PIXELS) -> Pillow.Image:
    """An upright RGB picture. Transparent parts lie over white; 16-bit greys are scaled to 8 bits.

    With `least` a large JPEG may come out smaller (by 2, 4 or 8), its shorter side never below `least` pixels. The
    size in the file's header is checked against `most_pixels` before anything is decoded. Raises BadSample.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning and EXIF complaints: the bound is ours
            picture = Pillow.open(io.BytesIO(data), formats=FORMATS)
            width, height = picture.size
            if width * height > most_pixels:
                raise BadSample(where, f"{width} x {height} pixels is more than the limit of {most_pixels}")
            return _rgb(_opened(picture, data, least))
    except BadSample:
        raise
    except Exception as error:
        raise BadSample(where, f"not a readable image ({type(error).__name__}: {error})") from None


def _opened(picture: Pillow.Image, data: bytes, least: int | None) -> Pillow.Image:
    """The pixels behind an opened header, upright; a JPEG at the smallest scale that keeps `least`."""
    scale = max((s for s in (1, 2, 4, 8) if least and min(picture.size) // s >= least), default=1)
    fast = _decode_fast(data, picture, scale) if picture.format == "JPEG" and picture.mode == "RGB" else None
    if fast is None:
        if scale > 1:
            picture.draft(picture.mode, (picture.width // scale, picture.height // scale))
        picture.load()
    turn = _TURNS.get(_orientation(picture))  # only now: loading a TIFF turns it
    decoded = picture if fast is None else fast
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


def _rgb(picture: Pillow.Image) -> Pillow.Image:
    """Any mode to RGB."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I"):  # 16 bits of grey, whole range
        values = np.asarray(picture).clip(0, 65535) / 257
        return Pillow.fromarray(values.round().astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        paper = Pillow.new("RGBA", picture.size, (255, 255, 255, 255))
        return Pillow.alpha_composite(paper, picture).convert("RGB")
    return picture.convert("RGB")
