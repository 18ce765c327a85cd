"""RGB from every mode in which Pillow opens a picture, the numeric ones scaled to 8 bits by a stated rule.

- 16-bit unsigned grey: 0 is black, 65,535 white; 12-bit grey (TIFF): 4,095 white. A PGM's own maximum is white.
- 16-bit signed, 32-bit integer and floating-point grey (TIFF, PFM) have no agreed white: the picture's lowest number is
  black, its highest white, linearly between.
- TIFF's "white is zero" turns either round.
- Of 16-bit colour the upper 8 bits are kept.
- PNG's transparent colour is compared at the file's own depth, before anything is scaled, and becomes white.

Refused, instead of a picture that is all black or white: numbers that are not finite; one and the same number everywhere,
where the picture sets its own range; numbers that differ but fall into one of 256 levels (of own range: all but one in a
thousand).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image as Pillow

_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # others: 4
_BAND = 1 << 20  # pixels that are converted at a time, so that no second whole picture is held
_ONE_LEVEL = 0.999  # share of the pixels that must not be one level where a picture sets its own range

Box = tuple[int, int, int, int]


class NotShown(ValueError):
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
        raise NotShown("nearly all of its numbers become one grey between its lowest and highest; save it in 8 bits")
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
        raise NotShown("it holds numbers that are not finite")
    black, white = (low, high) if _own_range(picture) else (0.0, 2.0**bits - 1)
    if black == white:
        raise NotShown(f"every number in it is {low:g}, which is neither black nor white; save it in 8 bits")
    if tags.get(_PHOTOMETRIC) == 0:
        black, white = white, black

    def levels(found: np.ndarray) -> np.ndarray:
        return ((found - black) / (white - black) * 255).clip(0, 255).round().astype(np.uint8)

    if low < high and len(set(levels(np.array([low, high])).tolist())) == 1:
        raise NotShown(
            f"its numbers, {low:g} to {high:g} between {black:g} and {white:g}, all become one grey in 8 bits"
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
