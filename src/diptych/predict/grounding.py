"""Phrases grounded in a photograph: the best box of each, as rows and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import PngImagePlugin

from diptych.api import VLM, load
from diptych.attribution.grounding import PhraseMap, grad_cam_of, ground_by_map
from diptych.config.predict import GroundPhrases
from diptych.data.sources.base import Box, DataError
from diptych.data.sources.photos import Photos, open_photos
from diptych.inference.saved_model import RunError
from diptych.predict.rows import Row
from diptych.protocols import UnsupportedOperation
from diptych.report.images import PREDICTED_BOX, captioned, draw_boxes, heat_overlay, side_by_side
from diptych.tasks.grounding import grounding_module
from diptych.tasks.operations import check_operation
from diptych.utils.io import atomic_write
from diptych.utils.terminal import printable

SOFTWARE = "diptych ground"  # in the PNGs that it writes, by which it knows them again
SIDE = 480  # pixels of the longer side of the photograph in the picture


@dataclass(frozen=True)
class Grounded:
    """A phrase with its best box in pixels, the box's score, and the phrase's map (None by a grounding head)."""

    phrase: str
    box: Box
    score: float
    map: PhraseMap | None


def ground_phrases(run: str, image: str, phrases: Sequence[str], config: GroundPhrases) -> list[Row]:
    """The best box of each phrase, as rows; with `config.out` also a picture of them.

    Raises:
        DataError: the image is not one photograph; BadSample: it cannot be read.
        RunError: `config.out` is no PNG that this command wrote.
        UnsupportedOperation: the model cannot ground phrases, or has no map for `config.map`.
        Also the errors of `api.load`.
    """
    photos = _one_photo(image)
    if config.out:
        check_own_picture(Path(config.out))
    model = load(run, config.device)
    check_operation(model.loaded, "ground")
    by_head = grounding_module(model.loaded) is not None
    if by_head and (config.map or config.method or config.layer >= 0):
        raise UnsupportedOperation(
            f"{run} has a grounding head, whose scores need no Grad-CAM: leave out --map, --method and --layer, or "
            "give the run that it was fine-tuned from"
        )
    path, results = photos.path(0), [_ground(model, photos.path(0), phrase, config) for phrase in phrases]
    if config.out:
        picture = draw(photos.image(0), photos.size(0), results, config.map)
        about = PngImagePlugin.PngInfo()
        about.add_text("Software", SOFTWARE)
        with atomic_write(Path(config.out)) as partial:
            picture.save(partial, "PNG", pnginfo=about)
    method = "head" if by_head else "gradcam"
    return [
        {"image": path, "phrase": one.phrase, "box": list(one.box), "score": one.score, "method": method}
        for one in results
    ]


def _one_photo(image: str) -> Photos:
    photos = open_photos([image])
    if len(photos) != 1:
        raise DataError(f"{image}: expected one photograph, got {len(photos):,}; give the path of one")
    return photos


def _ground(model: VLM, image: str, phrase: str, config: GroundPhrases) -> Grounded:
    if grounding_module(model.loaded) is not None:
        best = model.ground(image, phrase)[0]
        return Grounded(phrase, best.box, best.score, None)
    explain = grad_cam_of(model.loaded, config.method, None if config.layer < 0 else config.layer)
    phrase_map, boxes = ground_by_map(model.loaded, image, phrase, explain)
    return Grounded(phrase, *boxes[0], phrase_map)


def draw(photo: Pillow.Image, size: tuple[int, int], results: Sequence[Grounded], with_map: bool) -> Pillow.Image:
    """A panel for each phrase: the photograph, overlaid with the phrase's map, the box, the phrase and its score.

    Args:
        size: width and height that boxes are in pixels of; the photograph may have been decoded at a smaller scale.
        with_map: whether maps are drawn.
    """
    scale, panels = np.array([*size, *size]), []
    factor = SIDE / max(photo.size)
    shape = max(1, round(photo.width * factor)), max(1, round(photo.height * factor))
    resized = photo.convert("RGB").resize(shape, Pillow.Resampling.LANCZOS)
    for one in results:
        panel = resized
        if with_map and one.map is not None:
            heat = one.map.on_pixels(panel.size).clamp(min=0).numpy()
            overlay = heat_overlay(heat, float(heat.max()), panel.size)
            panel = Pillow.alpha_composite(panel.convert("RGBA"), overlay).convert("RGB")
        panel = draw_boxes(panel, [((np.array(one.box) / scale).tolist(), PREDICTED_BOX)], SIDE)
        panels.append(captioned(panel, f"{one.score:.3g}  {printable(one.phrase, 200)}"))
    return side_by_side(panels)


def check_own_picture(path: Path) -> None:
    """Raises RunError unless a file with this path would be a new PNG, or is one that this command wrote."""
    if path.suffix.lower() != ".png":
        raise RunError(f"--out {path}: expected a file .png")
    if path.is_dir():
        raise RunError(f"--out {path} is a folder; give a file in it, such as {path / 'boxed.png'}")
    if not path.exists():
        return
    try:
        with Pillow.open(path, formats=("PNG",)) as image:
            own = image.info.get("Software") == SOFTWARE
    except (OSError, ValueError, SyntaxError):
        own = False
    if not own:
        raise RunError(f"{path} exists, and was not written by this command: give another --out, or remove it")
