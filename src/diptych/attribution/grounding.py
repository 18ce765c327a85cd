"""Weakly supervised grounding: where a phrase is in an image, by a model that was trained on image-text pairs only.

A map of the phrase by Grad-CAM (`grad_cam`) scores boxes: the one with the highest score is the answer (ALBEF, Li et
al., NeurIPS 2021, section on visual grounding). In the pointing game the map's maximum must lie in the true box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from diptych.attribution.grad_cam import (
    CLASS_TO_IMAGE,
    TEXT_TO_IMAGE,
    GradCAM,
    Relevance,
    matching_score,
    similarity_score,
)
from diptych.batch import Batch, Image, Regions, Text
from diptych.config.data import ImageSettings
from diptych.data.images.loading import with_images
from diptych.data.images.transforms import visible_area
from diptych.data.regions.arrays import fixed_boxes
from diptych.data.sources.base import Box
from diptych.data.sources.photos import ImageInput
from diptych.inference.image_processor import ImageProcessor
from diptych.inference.loaded_model import LoadedModel
from diptych.modules.heads import ITCHead, RankingHead
from diptych.protocols import DualEncoder, FusionEncoder, PartlySupported, UnsupportedOperation

Method = Literal["", "itm", "itc"]
"""Which score is explained: "itm": the match logit of an ITM or ranking head; "itc": the similarity of a contrastive
head; "": "itm" if it was trained, else "itc".
"""
Size = tuple[int, int]
"""Width and height of a photograph in pixels."""
Boxes = Float[Tensor, "k 4"]
"""x1, y1, x2, y2 as shares of the photograph's width and height."""


MAX_CANVAS = 1024  # pixels of the longer side of a canvas that boxes are scored on


@dataclass(frozen=True)
class PhraseMap:
    """The relevance of an image's patches, or of its regions, to a phrase.

    Args:
        values: of a grid of patches ``(rows, columns)``, or of regions ``(n,)``.
        boxes: of the regions; None for patches.
        images: how the photograph was resized and cropped to the patches.
    """

    values: Float[Tensor, "rows columns"] | Float[Tensor, " n"]
    boxes: Boxes | None
    images: ImageSettings

    def on_pixels(self, size: Size) -> Float[Tensor, "h w"]:
        """The map on a canvas of `size`, which has the photograph's proportions; zero outside of a centre crop.

        Patches are interpolated bicubically (official code of ALBEF); a region's relevance is spread evenly over its
        box, and overlapping ones are added.
        """
        width, height = size
        canvas = torch.zeros(height, width)
        if self.boxes is not None:
            for value, (left, top, right, bottom) in zip(self.values, _pixels(self.boxes, size).tolist(), strict=True):
                canvas[top:bottom, left:right] += value / max((bottom - top) * (right - left), 1)
            return canvas
        area = torch.tensor([visible_area(height, width, self.images)])
        left, top, right, bottom = _pixels(area, size)[0].tolist()
        inside = F.interpolate(self.values[None, None], (bottom - top, right - left), mode="bicubic")[0, 0]
        canvas[top:bottom, left:right] = inside
        return canvas

    def maximum(self, size: Size) -> tuple[float, float]:
        """The point (x, y) of the highest relevance, in pixels; of regions the centre of the most relevant one."""
        if self.boxes is not None:
            left, top, right, bottom = self.boxes[int(self.values.argmax())].tolist()
            return (left + right) / 2 * size[0], (top + bottom) / 2 * size[1]
        row, column = divmod(int(self.on_pixels(size).argmax()), size[0])
        return column + 0.5, row + 0.5

    def score_boxes(self, boxes: Boxes, size: Size) -> Float[Tensor, " k"]:
        """The score of each box: the sum of the map in it, divided by the root of its area in pixels.

        Source: ALBEF's official code (`grounding_eval`, alpha 0.5).
        """
        table = F.pad(self.on_pixels(size).double().cumsum(0).cumsum(1), (1, 0, 1, 0))  # sums of rows and columns
        left, top, right, bottom = _pixels(boxes, size).unbind(1)
        sums = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
        width, height = size
        areas = ((boxes[:, 2] - boxes[:, 0]) * width) * ((boxes[:, 3] - boxes[:, 1]) * height)
        return (sums / areas.double().clamp(min=1) ** 0.5).float()

    def scored_boxes(self, size: Size, proposals: Boxes | None = None) -> tuple[Boxes, Float[Tensor, " k"]]:
        """The boxes to choose from, and the score of each by the map on a canvas of `size`.

        Of a model of regions they are its regions, whose score is their own relevance; of a model of patches the
        `proposals`, by default the boxes of `data.regions.arrays.fixed_boxes`, scored by `score_boxes`.
        """
        if self.boxes is not None:
            return self.boxes, self.values
        boxes = torch.from_numpy(fixed_boxes()[:, :4]) if proposals is None else proposals
        return boxes, self.score_boxes(boxes, size)


def _pixels(boxes: Boxes, size: Size) -> Tensor:
    """The boxes' corners in whole pixels of a canvas, inside of it."""
    width, height = size
    limits = torch.tensor([width, height, width, height])
    return (boxes * limits).round().long().clamp(min=torch.zeros_like(limits), max=limits)


def ground_by_map(
    loaded: LoadedModel, image: ImageInput, phrase: str, explain: GradCAM | None = None
) -> tuple[PhraseMap, list[tuple[Box, float]]]:
    """The map of a phrase over an image, and boxes in pixels with their scores, the best first.

    The boxes are the model's regions, or fixed ones (see `PhraseMap.scored_boxes`).

    Raises DataError, BadSample, and UnsupportedOperation for a model that has no such maps.
    """
    processor = ImageProcessor(loaded)
    photos = processor.open([image])
    ((_, visual),) = processor.batches(photos, 1)
    batch = Batch(0, 0, torch.zeros(1, dtype=torch.long), text=loaded.tokenizer.encode([phrase]))
    (phrase_map,) = phrase_maps(loaded, with_images(batch, visual).to(loaded.device), explain)
    size = photos.size(0)
    boxes, scores = phrase_map.scored_boxes(canvas_size(size))
    width, height = size
    pixels = (boxes.double() * torch.tensor([width, height, width, height])).round(decimals=2).tolist()
    order = scores.argsort(descending=True, stable=True).tolist()
    return phrase_map, [((*pixels[i],), float(scores[i])) for i in order]  # type: ignore[misc]  # four corners


def canvas_size(size: Size, longest: int = MAX_CANVAS) -> Size:
    """The size of a canvas with the proportions of a photograph, whose longer side is at most `longest` pixels."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def pointing_game(phrase_map: PhraseMap, true_boxes: Boxes, size: Size, tolerance: float = 0.0) -> dict[str, float]:
    """Whether the map's maximum lies in one of the true boxes, beside what needs no model.

    Source: Zhang et al., Top-down neural attention by excitation backprop, IJCV 2018, section on the pointing game.
    Differs: there a point may miss the object by 15 pixels, the `tolerance`; here by default by none, as images have
    any size.

    Returns: "pointing": 1 for a hit, else 0; "pointing/center": the same of the photograph's centre;
        "pointing/chance": of a random point, the share of the photograph that the boxes cover.
    """
    width, height = size
    covered = torch.zeros(height, width, dtype=torch.bool)
    for left, top, right, bottom in _pixels(true_boxes, size).tolist():
        covered[top:bottom, left:right] = True

    def hit(x: float, y: float) -> float:
        corners = true_boxes * torch.tensor([width, height, width, height])
        low, high = corners[:, :2] - tolerance, corners[:, 2:] + tolerance
        point = torch.tensor([x, y])
        return float(((low <= point) & (point <= high)).all(1).any())

    return {
        "pointing": hit(*phrase_map.maximum(size)),
        "pointing/center": hit(width / 2, height / 2),
        "pointing/chance": covered.float().mean().item(),
    }


def lacks_maps(loaded: LoadedModel, method: Method = "") -> str:
    """What a model lacks for maps of phrases, as the end of a sentence that begins with the model; "" if nothing."""
    if (method != "itc" and _pair_head(loaded) is not None) or (method != "itm" and _itc_head(loaded) is not None):
        return ""
    heads = {"": "ITM, ranking or contrastive", "itm": "ITM or ranking", "itc": "contrastive"}[method]
    return f"has no trained {heads} head, whose score a map could explain"


def grad_cam_of(loaded: LoadedModel, method: Method = "", layer: int | None = None) -> GradCAM:
    """Grad-CAM of a model's score of an image-text pair.

    Args:
        layer: which layer's attention; None: the default of `GradCAM`.

    Raises UnsupportedOperation for a model without such a score.
    """
    if why := lacks_maps(loaded, method):
        raise UnsupportedOperation(f"Grad-CAM: this {type(loaded.model).__name__} {why}")
    if method != "itc" and (head := _pair_head(loaded)) is not None:
        return GradCAM(matching_score(loaded.model, head), TEXT_TO_IMAGE, layer)
    itc = _itc_head(loaded)
    assert itc is not None  # else `lacks_maps`
    return GradCAM(similarity_score(loaded.model, itc), CLASS_TO_IMAGE, layer)


def _pair_head(loaded: LoadedModel) -> Callable[[Tensor], Tensor] | None:
    """The trained ITM or ranking head of a model that fuses one image with a text; None if there is none."""
    model = loaded.model
    unsupported = model.unsupported() if isinstance(model, PartlySupported) else {}
    if not isinstance(model, FusionEncoder) or "fuse" in unsupported:
        return None
    ranking = getattr(loaded.module, "rank", None)
    if isinstance(ranking, RankingHead):
        return ranking
    return dict(loaded.heads.items()).get("itm") if "itm" in loaded.losses else None


def _itc_head(loaded: LoadedModel) -> ITCHead | None:
    head = dict(loaded.heads.items()).get("itc")
    trained = isinstance(head, ITCHead) and "itc" in loaded.losses and isinstance(loaded.model, DualEncoder)
    return head if trained and isinstance(head, ITCHead) else None


def phrase_maps(loaded: LoadedModel, batch: Batch, explain: GradCAM | None = None) -> list[PhraseMap]:
    """The map of each sample's text over its image: the mean over all of its tokens, as in ALBEF's official code.

    Args:
        explain: from `grad_cam_of`, for the maps of several batches; None: the default of the model.

    Raises UnsupportedOperation for a model that has no such maps, ValueError for a batch without texts or images.
    """
    explain = explain or grad_cam_of(loaded)
    text, visual = _text_and_image(batch)
    relevance = explain(text, visual)
    return _maps(loaded, batch, relevance, relevance.mean())


def word_maps(loaded: LoadedModel, batch: Batch, explain: GradCAM | None = None) -> list[list[tuple[str, PhraseMap]]]:
    """The words of each sample's text, each with its map: the mean over the word's tokens.

    Raises as `phrase_maps`, and UnsupportedOperation for maps of the class token, which has no words.
    """
    explain = explain or grad_cam_of(loaded)
    text, visual = _text_and_image(batch)
    relevance = explain(text, visual)
    if relevance.queries.shape != text.mask.shape:
        raise UnsupportedOperation("Grad-CAM of the class token gives one map of the whole text: use method 'itm'")
    number = word_numbers(text)  # b n
    words: list[list[tuple[str, PhraseMap]]] = [[] for _ in range(len(text))]
    for n in range(1, int(number.max()) + 1):
        maps = _maps(loaded, batch, relevance, relevance.mean(number == n))
        for i, one in enumerate(maps):
            if (number[i] == n).any():
                words[i].append((loaded.tokenizer.decode(text.ids[i][number[i] == n].tolist()), one))
    return words


def word_numbers(text: Text) -> Tensor:
    """The number of the word, from 1, that each token ``(b, n)`` belongs to; 0 at special tokens and padding.

    Tokens are words themselves if the tokenizer does not give word boundaries.
    """
    last = text.mask.sum(1, keepdim=True) - 1
    place = torch.arange(text.mask.shape[1], device=text.mask.device)
    inner: Bool[Tensor, "b n"] = (place > 0) & (place < last)
    starts = inner if text.word_start is None else text.word_start & inner
    return starts.long().cumsum(1) * inner


def _text_and_image(batch: Batch) -> tuple[Text, Image | Regions]:
    visual = batch.regions if batch.image is None else batch.image
    if batch.text is None or visual is None:
        raise ValueError("expected a batch with texts, and with images or regions")
    return batch.text, visual


def _maps(
    loaded: LoadedModel, batch: Batch, relevance: Relevance, values: Float[Tensor, "b positions"]
) -> list[PhraseMap]:
    """One map for each sample, without padding, on the CPU."""
    values, real = values.cpu(), relevance.positions.cpu()
    if relevance.grid is None:
        assert batch.regions is not None
        boxes = batch.regions.boxes.cpu()[:, -values.shape[1] :, :4]  # without the region of the whole image
        return [
            PhraseMap(one[inside], of_image[inside], loaded.image_settings)
            for one, of_image, inside in zip(values, boxes, real, strict=True)
        ]
    grids, insides = values.unflatten(1, relevance.grid), real.unflatten(1, relevance.grid)
    return [
        PhraseMap(one[inside.any(1)][:, inside.any(0)], None, loaded.image_settings)
        for one, inside in zip(grids, insides, strict=True)
    ]
