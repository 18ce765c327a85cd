"""Renderer of scene graphs: ground and clutter, then the objects with their materials and outlines."""

from __future__ import annotations

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFilter

from diptych.data.synthetic.shapes import silhouette
from diptych.data.synthetic.world import Scene, Thing

_FINE = 4  # supersampling factor of silhouettes
_PAINT = {
    "red": (214, 38, 38),
    "orange": (245, 136, 20),
    "yellow": (248, 220, 40),
    "green": (36, 160, 60),
    "blue": (38, 84, 222),
    "purple": (128, 50, 176),
    "pink": (250, 140, 190),
    "brown": (122, 72, 34),
    "white": (246, 246, 246),
    "black": (28, 28, 30),
}
_GROUND = {
    "grass": (134, 158, 116),
    "sand": (196, 180, 142),
    "sky": (150, 180, 200),
    "stone": (142, 142, 146),
    "wood": (168, 142, 118),
}


def render(scene: Scene) -> Pillow.Image:
    """RGB image of `scene.width` x `scene.height` pixels."""
    rng = scene.generator("pixels")
    canvas = _ground(scene, rng)
    for thing in scene.things:
        _paint(canvas, thing, rng)
    canvas += rng.standard_normal(canvas.shape[:2], dtype=np.float32)[..., None] * 3
    return Pillow.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def mask(thing: Thing) -> np.ndarray:
    """Coverage of each pixel of the box, padded by one pixel on every side: uint8 ``(h + 2, w + 2)``."""
    return np.asarray(_mask(thing))


def _mask(thing: Thing) -> Pillow.Image:
    x1, y1, x2, y2 = thing.box
    w, h = x2 - x1, y2 - y1
    image = Pillow.new("L", ((w + 2) * _FINE, (h + 2) * _FINE))
    pen = ImageDraw.Draw(image)
    for polygon in silhouette(thing.kind, thing.tilt):
        points = polygon * (max(w, h) * _FINE - 1) + _FINE
        pen.polygon([(x, y) for x, y in points.tolist()], fill=255)
    return image.reduce(_FINE)


def _ground(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Muted background with a gradient, a texture of its kind, and distractor strokes."""
    w, h = scene.width, scene.height
    base = np.array(_GROUND[scene.ground], np.float32) + rng.normal(0, 8, 3)
    image = Pillow.new("RGB", (w, h), tuple(int(v) for v in base))
    pen = ImageDraw.Draw(image)
    unit = max(1, (w + h) // 190)

    def tone(spread: int) -> tuple[int, int, int]:
        r, g, b = (base + rng.normal(0, spread) + rng.normal(0, 4, 3)).astype(int).tolist()
        return r, g, b

    for x, y in (rng.random((26, 2)) * (w, h)).tolist():
        if scene.ground == "grass":
            pen.line((x, y, x + rng.normal(0, 2) * unit, y - 7 * unit), fill=tone(22), width=unit)
        elif scene.ground == "wood":
            pen.line((x - 30 * unit, y, x + 30 * unit, y + rng.normal(0, 1)), fill=tone(14), width=unit)
        elif scene.ground == "stone":
            pen.line((x, y, x + rng.normal(0, 12) * unit, y + rng.normal(0, 12) * unit), fill=tone(20), width=unit)
        elif scene.ground == "sky":
            pen.ellipse((x, y, x + 20 * unit, y + 7 * unit), fill=tone(12))
        else:
            pen.ellipse((x, y, x + 2 * unit, y + 2 * unit), fill=tone(30))
    for x, y in (rng.random((int(rng.integers(2, 7)), 2)) * (w, h)).tolist():  # distractor strokes
        bend = rng.normal(0, 16 * unit, 4).tolist()
        stroke = tuple(int(v) for v in rng.integers(70, 190, 3))
        pen.line((x, y, x + bend[0], y + bend[1], x + bend[2], y + bend[3]), fill=stroke, width=unit)
    slope = rng.normal(0, 14, 2)
    shade = np.linspace(-slope[0], slope[0], h)[:, None] + np.linspace(-slope[1], slope[1], w)[None, :]
    return np.asarray(image, dtype=np.float32) + shade.astype(np.float32)[..., None]


def _paint(canvas: np.ndarray, thing: Thing, rng: np.random.Generator) -> None:
    """Draws one object onto the canvas, in place."""
    x1, y1, x2, y2 = thing.box
    whole = _mask(thing)
    inner = np.asarray(whole.filter(ImageFilter.MinFilter(3)), dtype=np.float32)[..., None] / 255
    cover = np.asarray(whole, dtype=np.float32)[..., None] / 255
    paint = np.array(_PAINT[thing.color], np.float32) + rng.normal(0, 9, 3).astype(np.float32)
    edge = np.float32(235) if thing.color == "black" else paint * np.float32(0.3)
    body = edge + (_material(thing.material, paint, cover.shape[0], cover.shape[1], rng) - edge) * inner
    top, left = max(0, y1 - 1), max(0, x1 - 1)
    window = canvas[top : y2 + 1, left : x2 + 1]
    down, across = top - (y1 - 1), left - (x1 - 1)
    part = np.s_[down : down + window.shape[0], across : across + window.shape[1]]
    window += (body[part] - window) * cover[part]


def _material(material: str, paint: np.ndarray, h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    """Colors of the surface ``(h, w, 3)``: plain, or with a pattern in a second tone."""
    y, x = np.mgrid[:h, :w].astype(np.float32)
    light = paint.mean() > 150
    second = paint * np.float32(0.55) if light else paint + (255 - paint) * np.float32(0.62)
    if material == "plain":
        return np.broadcast_to(paint, (h, w, 3))
    if material == "striped":
        step = max(5.0, max(h, w) / 6)
        amount = ((x + y + rng.uniform(0, step)) % step < step * 0.4).astype(np.float32)
    elif material == "spotted":
        step = max(5.0, max(h, w) / 6)
        row = np.floor(y / step)
        dx, dy = (x + row % 2 * step / 2) % step - step / 2, y % step - step / 2
        amount = (dx**2 + dy**2 < (0.33 * step) ** 2).astype(np.float32)
    else:  # shiny: darker towards the bottom, with a white highlight near the top
        second = np.full(3, 255, np.float32)
        paint = paint * (1.1 - 0.6 * y / h)[..., None]
        amount = np.exp(-(((x - 0.38 * w) / (0.17 * w)) ** 2 + ((y - 0.36 * h) / (0.13 * h)) ** 2)).astype(np.float32)
    return paint + (second - paint) * amount[..., None]
