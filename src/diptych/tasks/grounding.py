"""Grounding of referring expressions: the region of an image that a phrase refers to (ViLBERT, section 4.2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diptych.attribution.grad_cam import GradCAM
from diptych.attribution.grounding import (
    canvas_size,
    grad_cam_of,
    ground_by_map,
    lacks_maps,
    phrase_maps,
    pointing_game,
)
from diptych.batch import Batch
from diptych.config import tasks as settings
from diptych.config.data import DataLayout
from diptych.config.run import Finetune
from diptych.data.grounding import GroundedExamples, Proposals, box_shares
from diptych.data.images.loading import with_images
from diptych.data.loader import SkipCounter
from diptych.data.regions.arrays import fixed_boxes
from diptych.data.regions.files import open_regions
from diptych.data.regions.frozen_features import RegionLoader
from diptych.data.sources.ablations import AblatedExpressions
from diptych.data.sources.base import Box, Grounded
from diptych.data.sources.division import say_division
from diptych.data.sources.grounding import open_expressions
from diptych.data.sources.photos import ImageInput
from diptych.inference.embedders import image_input
from diptych.inference.image_processor import ImageProcessor
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import ModelSettings, RunError
from diptych.inference.tokenizer import tokenizer_of
from diptych.metrics.bootstrap import means, means_of_rows
from diptych.metrics.boxes import THRESHOLD, blind_scores, ious
from diptych.models.configs import (
    BEiT3Config,
    Model,
    ViLBERTConfig,
    ViLTConfig,
    VisualBERTConfig,
    VLMoConfig,
    model_name,
)
from diptych.modules.heads import GroundingHead
from diptych.modules.init import init_transformer
from diptych.modules.tokens import FusedTokens
from diptych.protocols import ChanceLoss, FusionEncoder
from diptych.report import GroundingExample
from diptych.tasks.common import encode_images, evaluation_rows, options_of, required, sample_counts
from diptych.tasks.definition import (
    MAX_EXAMPLES,
    FineTuning,
    Labels,
    Result,
    Task,
    draw_examples,
    evenly_spaced,
    seed_without_effect,
    trained_with,
)

PADDING_SCORE = -10000.0  # added to the scores of padding
BATCH = 64  # phrases grounded at once in evaluation
MAP_BATCH = 8  # the same by Grad-CAM, which keeps all activations
TOP_K = 3  # regions kept in predictions

GroundingModel = BEiT3Config | ViLBERTConfig | ViLTConfig | VisualBERTConfig | VLMoConfig
"""Models whose image tokens attend to the text: the others' (ALBEF, BLIP) are the same for every phrase."""


@dataclass(frozen=True)
class RegionScores:
    """The logit of each region, the regions as shares of the image's sides, and which are not padding."""

    logits: Float[Tensor, "b n"]
    boxes: Float[Tensor, "b n 5"]
    mask: Bool[Tensor, "b n"]


class Grounding(nn.Module):
    """A training step: binary cross entropy of ``labels["regions"]`` (b, n), summed over regions.

    A region's label is its IoU with the true box if that is at least 0.5, else 0. The accuracy is the share of phrases
    whose top region has an IoU above 0.5.

    A model of region features scores its regions. In a model of patches a region's logit is the mean of the patches'
    logits, each weighted by the share of the patch that the region covers: average pooling of the patches' tokens
    before the linear head.

    Source: ViLBERT, section 4.2, and its official code. Differs: the paper has no models of patches.
    """

    def __init__(self, model: FusionEncoder, head: GroundingHead):
        super().__init__()
        self.model, self.head = model, head
        self.head.apply(init_transformer)
        self.weights = {"grounding": 1.0}
        self.chance_losses: dict[str, ChanceLoss] = {}  # the share of overlapping regions depends on the data

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "grounding", "grounding/accuracy")

    def pair(self, batch: Batch) -> FusedTokens:
        text = self.model.encode_text(required(batch.text, "phrase"))
        return self.model.fuse(text, encode_images(self.model, batch))

    def scores(self, pair: FusedTokens) -> Float[Tensor, "b n"]:
        """A logit for every region token; at padding PADDING_SCORE is added."""
        scores = self.head(pair.image.to_padded()).float()
        return scores + PADDING_SCORE * (~pair.image.mask).float()

    def region_scores(self, batch: Batch) -> RegionScores:
        """The logits of the regions of a batch: its own, or of pixels ``labels["boxes"]``, by default fixed boxes."""
        if batch.regions is not None:
            return RegionScores(self.scores(self.pair(batch)), batch.regions.boxes, batch.regions.mask)
        boxes = batch.labels.get("boxes")
        if boxes is None:
            boxes = torch.from_numpy(fixed_boxes()).to(batch.ids.device).expand(len(batch), -1, -1)
        mask = boxes[..., 4] > 0
        patches = self.pair(batch).image.select(name="patches")
        shares = coverage(boxes, patches.mask, required(patches.layout.spans[0].grid, "grid of patches"))
        logits = (shares * self.head(patches.to_padded()).float()[:, None]).sum(2)
        return RegionScores(logits + PADDING_SCORE * (~mask).float(), boxes, mask)

    def losses(self, scores: Tensor, overlap: Tensor, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        right = (overlap.gather(1, scores.argmax(1, keepdim=True)) > THRESHOLD).sum().float()
        loss = F.binary_cross_entropy_with_logits(scores, overlap, reduction="sum")
        return {
            "grounding": loss / counts["grounding"],
            "grounding/accuracy": right.detach() / counts["grounding/accuracy"],
        }

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.region_scores(batch).logits, batch.labels["regions"], counts)


def coverage(
    boxes: Float[Tensor, "b n 5"], inside: Bool[Tensor, "b cells"], grid: tuple[int, int]
) -> Float[Tensor, "b n cells"]:
    """How much of each box falls on each cell of a batch's grid, as shares that sum to 1; 0 for a box without area.

    Args:
        boxes: as shares of the image's sides.
        inside: the cells of each image, in raster order: a smaller image fills the first rows and columns.
        grid: rows and columns.
    """
    cells = inside.view(-1, *grid)

    def along(begin: Tensor, end: Tensor, number: Int[Tensor, " b"], side: int) -> Float[Tensor, "b n side"]:
        edges = torch.arange(side + 1, device=boxes.device) / number[:, None]  # b side+1
        low = torch.maximum(begin[:, :, None], edges[:, None, :-1])
        return (torch.minimum(end[:, :, None], edges[:, None, 1:]) - low).clamp(min=0)

    tall = along(boxes[..., 1], boxes[..., 3], cells.any(2).sum(1), grid[0])
    wide = along(boxes[..., 0], boxes[..., 2], cells.any(1).sum(1), grid[1])
    shares = (tall[..., :, None] * wide[..., None, :]).flatten(2) * inside[:, None]
    return shares / shares.sum(2, keepdim=True).clamp(min=1e-12)


def evaluate(loaded: LoadedModel, config: settings.Grounding) -> Result:
    """Accuracy at IoU 0.5 and mean IoU, over all phrases and by kind, beside what regions chosen blindly reach.

    "best region" is the upper bound: the share of phrases for which some region is right. A model without a grounding
    head is evaluated by Grad-CAM, and has the pointing game too: "pointing", beside the photograph's centre
    ("pointing/center") and a random point ("pointing/chance").

    Raises:
        DataError: the data cannot be read.
        UnsupportedOperation: the model can neither ground phrases nor match them with images.
    """
    module = None if config.method else grounding_module(loaded)
    explain = (
        grad_cam_of(loaded, config.method, config.layer if config.layer >= 0 else None) if module is None else None
    )
    source = expressions(config.data, config.split, config.layout, config.ablate, loaded.image_settings.shorter_side)
    say_division(source)
    examples = _examples(loaded.saved, source, config.proposals, config.true_regions)
    counter = SkipCounter(config.max_skipped)

    def rows_of(batch: Batch) -> list[dict[str, Any]]:
        if explain is not None:
            return _rows_by_map(loaded, source, batch, explain)
        assert module is not None
        scores = module.region_scores(batch)
        rows = zip(batch.ids.tolist(), scores.logits, scores.boxes, scores.mask, strict=True)
        return [_row(source, index, _arrays(logits[real], boxes[real])) for index, logits, boxes, real in rows]

    batch_size = BATCH if explain is None else MAP_BATCH
    rows = evaluation_rows(loaded, examples, config, batch_size, counter, "grounding", rows_of)
    values = _values(rows)
    metrics = {"phrases": float(len(rows)), "skipped": float(counter.num_skipped)} | means(values)
    resampled = means_of_rows([row["picture"] for row in rows], values)
    examples_of_rows = partial(draw_examples, _right_and_wrong(rows), partial(_example, source))
    return Result(metrics, rows, examples_of_rows, list(counter.skipped.values()), resampled=resampled)


def _arrays(logits: Tensor, boxes: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities ``(n,)`` of an image's regions, and the regions ``(n, 4)``."""
    return logits.float().sigmoid().cpu().numpy(), boxes[:, :4].float().cpu().numpy()


def _rows_by_map(loaded: LoadedModel, source: Grounded, batch: Batch, explain: GradCAM) -> list[dict[str, Any]]:
    """The predictions for a batch by the maps of its phrases: of regions, or of the boxes in its labels."""
    rows = []
    for i, (index, phrase_map) in enumerate(zip(batch.ids.tolist(), phrase_maps(loaded, batch, explain), strict=True)):
        expression = source.expression(index)
        size = source.size(expression.image)
        canvas = canvas_size(size)
        proposals = batch.labels["boxes"][i].cpu() if "boxes" in batch.labels else None
        proposals = None if proposals is None else proposals[proposals[:, 4] > 0, :4]
        boxes, scores = phrase_map.scored_boxes(canvas, proposals)
        truth = torch.from_numpy(box_shares([expression.box], size, source.where(index))[:, :4])
        row = _row(source, index, (scores.numpy(), boxes.numpy()), "score")
        rows.append(row | {"pointing": pointing_game(phrase_map, truth, canvas)})
    return rows


def _row(
    source: Grounded, index: int, regions: tuple[np.ndarray, np.ndarray], name: str = "probability"
) -> dict[str, Any]:
    """The prediction of a phrase: the regions with the highest scores, called `name`, and what it scores."""
    expression, size = source.expression(index), source.size(source.expression(index).image)
    probabilities, boxes = regions
    overlap = ious(boxes, box_shares([expression.box], size, source.where(index))[0, :4])
    row = {"index": index, "id": expression.id, "picture": expression.image, "image": source.where(index)}
    row |= {"phrase": expression.phrase, "kinds": list(expression.kinds), "truth": list(expression.box)}
    row |= probable_regions(probabilities, boxes, size, name=name)
    iou = float(overlap[probabilities.argmax()])
    return row | {"iou": iou, "right": iou > THRESHOLD, "blind": blind_scores(boxes, overlap)}


def probable_regions(
    probabilities: np.ndarray, boxes: np.ndarray, size: tuple[int, int], k: int = TOP_K, name: str = "probability"
) -> dict[str, Any]:
    """The most probable region in pixels with its probability, called `name`, and the `k` most probable ones."""
    scale = np.array([*size, *size])
    order = np.argsort(-probabilities, kind="stable")[:k]
    top = [[(boxes[i] * scale).round(2).tolist(), float(probabilities[i])] for i in order]
    return {"box": top[0][0], name: top[0][1], "probable": top}


def _values(rows: Sequence[dict[str, Any]]) -> dict[str, list[float | None]]:
    """The value of each row for each metric; None for rows of other kinds."""
    values: dict[str, list[float | None]] = defaultdict(list)
    for row in rows:
        values["accuracy"].append(float(row["right"]))
        values["mean IoU"].append(row["iou"])
        for name, value in (row["blind"] | row.get("pointing", {})).items():
            values[name].append(value)
    for kind in sorted({kind for row in rows for kind in row["kinds"]}):
        values[f"accuracy, {kind}"] = [float(row["right"]) if kind in row["kinds"] else None for row in rows]
    return dict(values)


def _right_and_wrong(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The predictions to show: half right ones and half wrong ones, as far as there are."""
    right, wrong = ([row for row in rows if row["right"] == side] for side in (True, False))
    chosen = evenly_spaced(right, MAX_EXAMPLES - min(len(wrong), MAX_EXAMPLES // 2))
    return [*chosen, *evenly_spaced(wrong, MAX_EXAMPLES - len(chosen))]


def _example(source: Grounded, row: dict[str, Any]) -> GroundingExample:
    """The image with both boxes, in shares of its sides: it may be decoded at a smaller scale."""
    scale = np.array([*source.size(row["picture"])] * 2)
    box, truth = (tuple((np.array(row[name]) / scale).tolist()) for name in ("box", "truth"))
    return GroundingExample(source.image(row["picture"]), row["phrase"], box, truth, row.get("probability"), row["iou"])


def predict(loaded: LoadedModel, batch: Batch) -> list[dict[str, Any]]:
    """The most probable region of each image for its phrase: its box in pixels and its probability; then the next ones.

    ``labels["size"]`` (b, 2) has the width and height of each photograph.
    """
    return [probable_regions(*regions, size) for regions, size in _regions_of(loaded, batch)]


def _regions_of(loaded: LoadedModel, batch: Batch) -> list[tuple[tuple[np.ndarray, np.ndarray], tuple[int, int]]]:
    """The regions of each image of a batch with their probabilities, and its size."""
    module = grounding_module(loaded)
    assert module is not None
    scores, sizes = module.region_scores(batch), batch.labels["size"].tolist()
    rows = zip(scores.logits, scores.boxes, scores.mask, sizes, strict=True)
    return [(_arrays(logits[real], boxes[real]), (width, height)) for logits, boxes, real, (width, height) in rows]


def ground(loaded: LoadedModel, image: ImageInput, phrase: str) -> list[tuple[Box, float]]:
    """All regions of an image, in pixels, with the probability that the phrase refers to each, the most probable first.

    Of a model without a grounding head: the regions, or fixed boxes, with their score by the phrase's map (Grad-CAM).

    Call it within `LoadedModel.computing`. Raises DataError, BadSample.
    """
    if grounding_module(loaded) is None:
        return ground_by_map(loaded, image, phrase)[1]
    processor = ImageProcessor(loaded)
    photos = processor.open([image])
    ((_, pixels),) = processor.batches(photos, 1)
    labels = {"size": torch.tensor([photos.size(0)])}
    batch = Batch(0, 0, torch.zeros(1, dtype=torch.long), text=loaded.tokenizer.encode([phrase]), labels=labels)
    (((probabilities, boxes), size),) = _regions_of(loaded, with_images(batch, pixels).to(loaded.device))
    top = probable_regions(probabilities, boxes, size, len(boxes))["probable"]
    return [((x1, y1, x2, y2), probability) for (x1, y1, x2, y2), probability in top]


def grounding_module(loaded: LoadedModel) -> Grounding | None:
    """The grounding step of a loaded model; None if it has none."""
    return loaded.module if isinstance(loaded.module, Grounding) else None


def expressions(data: str, split: str, layout: DataLayout, ablate: str, min_side: int) -> Grounded:
    """Referring expressions of a split; with `ablate` "image" or "text" that part of each is hidden (baseline)."""
    source = open_expressions(data, split, layout, min_side=min_side)
    return AblatedExpressions(source, ablate) if ablate else source


def _examples(config: ModelSettings, source: Grounded, proposals: Proposals, true_regions: str) -> GroundedExamples:
    """Examples with the model's image input, never augmented."""
    true = RegionLoader(open_regions(Path(true_regions))) if true_regions and proposals != "model" else None
    return GroundedExamples(source, tokenizer_of(config), image_input(config), proposals, true)


def training_examples(run: Finetune, split: str, labels: Labels, augment: bool) -> GroundedExamples:
    """Phrases of a split with the regions of their images. True boxes join the regions in training only."""
    options = options_of(run, settings.GroundingOptions)
    source = expressions(run.data, split, run.layout, options.ablate, run.images.shorter_side)
    proposals = "model" if options.proposals == "joined" and not augment else options.proposals
    return _examples(run, source, proposals, options.true_regions)


def image_token_dim(model: Model) -> int:
    """Width of a model's fused image tokens."""
    return model.image_dim if isinstance(model, ViLBERTConfig) else model.dim  # type: ignore[union-attr]


def build_module(model: Any, config: ModelSettings, labels: Labels, options: settings.GroundingOptions) -> Grounding:
    """The training step on a model. Raises RunError for a model whose image tokens do not depend on the text."""
    if not isinstance(config.model, GroundingModel):
        raise RunError(f"grounding needs a model {NEEDS}, not a {model_name(config.model)}")
    if config.images.crop:
        raise RunError(f"images.crop: grounding needs whole images, got a crop of {config.images.crop}; set it to 0")
    head = GroundingHead(image_token_dim(config.model), getattr(config.model, "dropout", 0.0))
    return Grounding(model, head)


def lacks(loaded: LoadedModel) -> str:
    """What a model lacks to ground phrases."""
    if grounding_module(loaded) is not None or not lacks_maps(loaded):
        return ""
    return f"has no trained grounding head, nor an ITM, ranking or contrastive head to explain {trained_with(loaded)}"


NEEDS = "whose image tokens attend to the text (ViLBERT, VisualBERT, ViLT, VLMo, BEiT-3)"

TASK = Task(
    settings.Grounding,
    evaluate,
    lacks,
    FineTuning(build_module, training_examples, models=GroundingModel, needs=NEEDS),
    predict,
    seed_without_effect,
)
