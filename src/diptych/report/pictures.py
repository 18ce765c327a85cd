"""Pictures as data URIs, and a transport plan as a picture to lay over a photograph."""

import base64
import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


def data_uri(picture: Image.Image, longest: int = 320) -> str:
    """The picture, shrunk to at most `longest` pixels a side: PNG where it has alpha, JPEG otherwise."""
    alpha = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    picture = picture.convert("RGBA" if alpha else "RGB")
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if alpha else "JPEG", optimize=True, **({} if alpha else {"quality": 82}))
    return f"data:image/{'png' if alpha else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shares(plan: Float[np.ndarray, "words rows columns"]) -> Float[np.ndarray, "words rows columns"]:
    """Each word's mass as shares that sum to 1 over the patches; a word without mass stays 0."""
    mass = np.nan_to_num(np.asarray(plan, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    total = mass.sum(axis=(1, 2), keepdims=True)
    return np.divide(mass, total, out=np.zeros_like(mass), where=total > 0)


def heat(value: Float[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "rows columns 4"]:
    """RGBA for values in [0, 1]: violet over orange to pale yellow, even steps of OKLab lightness; 0 is clear."""
    value = np.clip(value, 0, 1)
    lightness = 0.35 + 0.6 * value
    hue = np.deg2rad(-55 + 160 * value)
    chroma = 0.19 - 0.06 * value
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    # OKLab to linear sRGB (Ottosson, 2020).
    long, middle, short = (
        (lightness + x * a + y * b) ** 3
        for x, y in ((0.3963377774, 0.2158037573), (-0.1055613458, -0.0638541728), (-0.0894841775, -1.2914855480))
    )
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
        ],
        axis=-1,
    ).clip(0, 1)
    colour = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    alpha = 0.75 * value**0.7
    return np.round(255 * np.concatenate([colour, alpha[..., None]], axis=-1)).astype(np.uint8)


def overlay(share: Float[np.ndarray, "rows columns"], peak: float, size: tuple[int, int]) -> Image.Image:
    """One word's shares as a picture of `size` (width, height), up-sampled bilinearly; `peak` takes the last colour."""
    scaled = (share / peak if peak > 0 else share).astype(np.float32)
    large = Image.fromarray(scaled).resize(size, Image.Resampling.BILINEAR)
    return Image.fromarray(heat(np.asarray(large)), "RGBA")
