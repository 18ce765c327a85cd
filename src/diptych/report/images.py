"""Images as data URIs, and heat maps of a transport plan as overlays of an image."""

import base64
import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


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
