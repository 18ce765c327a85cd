"""Images as data URIs, and heat maps of a transport plan as overlays of an image."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont


def data_uri(image: Image.Image, longest: int = 320) -> str:
    """Data URI of the image, shrunk to at most `longest` pixels a side: PNG if it has transparency, else JPEG."""
    alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    image = image.convert("RGBA" if alpha else "RGB")  # a copy: thumbnail() works in place
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if alpha:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", optimize=True, quality=82)
    return f"data:image/{'png' if alpha else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


TRUE_BOX, PREDICTED_BOX = "#0a8f5b", "#e8590c"
"""Colours of boxes: green and orange, which also differ in brightness and in line (`draw_boxes`)."""


def draw_boxes(image: Image.Image, boxes: Sequence[tuple[Sequence[float], str]], longest: int = 320) -> Image.Image:
    """A copy of the image with boxes (x1, y1, x2, y2 as shares of its sides), each in a colour, the last on top.

    The image is shrunk first, to at most `longest` pixels a side, so that lines are of one width; later boxes have
    thinner lines, so that equal boxes are both visible.
    """
    copy = image.convert("RGB")
    copy.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    pen, (width, height) = ImageDraw.Draw(copy), copy.size
    for i, (box, colour) in enumerate(boxes):
        x1, x2 = (min(max(x, 0), 1) * (width - 1) for x in box[::2])
        y1, y2 = (min(max(y, 0), 1) * (height - 1) for y in box[1::2])
        pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=max(1, 2 * (len(boxes) - i)))
    return copy


def captioned(image: Image.Image, caption: str, height: int = 22) -> Image.Image:
    """The image with a line of text below it, on white; a text that is too long is cut."""
    from matplotlib import font_manager  # half a second to import: only when a figure is drawn

    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), round(0.65 * height))
    while caption and font.getlength(caption) > image.width - 8:
        caption = f"{caption[:-2].rstrip()}…" if len(caption) > 1 else ""
    canvas = Image.new("RGB", (image.width, image.height + height), "white")
    canvas.paste(image)
    ImageDraw.Draw(canvas).text((4, image.height + 2), caption, "black", font)
    return canvas


def side_by_side(images: Sequence[Image.Image], columns: int = 3, gap: int = 6) -> Image.Image:
    """Images of one size in rows of `columns`, on white."""
    width, height = images[0].size
    wide, tall = min(columns, len(images)), -(-len(images) // columns)
    canvas = Image.new("RGB", (wide * (width + gap) - gap, tall * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        canvas.paste(image, (i % columns * (width + gap), i // columns * (height + gap)))
    return canvas


def normalize_plan(plan: Float[np.ndarray, "tokens rows columns"]) -> Float[np.ndarray, "tokens rows columns"]:
    """The plan with each token's mass divided by its sum over the patches; a token without mass stays zero."""
    mass = np.nan_to_num(np.asarray(plan, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    total = mass.sum(axis=(1, 2), keepdims=True)
    return np.divide(mass, total, out=np.zeros_like(mass), where=total > 0)


def heat_colours(values: Float[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "rows columns 4"]:
    """RGBA of values in [0, 1] in matplotlib's colour map "plasma"; opacity rises from 0 to 0.75."""
    import matplotlib  # half a second to import: only when a figure is drawn

    values = np.clip(values, 0, 1)
    colours = matplotlib.colormaps["plasma"](values)
    colours[..., 3] = 0.75 * values**0.7
    return np.round(255 * colours).astype(np.uint8)


def heat_overlay(shares: Float[np.ndarray, "rows columns"], peak: float, size: tuple[int, int]) -> Image.Image:
    """The shares of one token as an image of `size` (width, height), upsampled bilinearly; `peak` is fully coloured."""
    scaled = (shares / peak if peak > 0 else shares).astype(np.float32)
    upsampled = Image.fromarray(scaled).resize(size, Image.Resampling.BILINEAR)
    return Image.fromarray(heat_colours(np.asarray(upsampled)), "RGBA")
