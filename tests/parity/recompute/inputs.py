"""Inputs of a golden folder as a batch, and our Tokens in the layout of its outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from diptych.batch import Batch, Image, Regions, Text
from diptych.modules.tokens import Tokens
from diptych.objectives.lm import LMLoss
from diptych.objectives.masked_captions import MaskedCaptionLoss
from diptych.objectives.pretraining import Pretraining
from tests.parity.golden_case import Case, Recomputed


def text_of(case: Case, stem: str = "text") -> Text:
    """The texts in {stem}_ids, with all leading dimensions flattened to one."""
    ids, masks = case.input(f"{stem}_ids"), case.input(f"{stem}_masks")
    return Text(ids.flatten(0, -2), masks.flatten(0, -2).bool())


def text_to_largest(ids: Int[Tensor, "b n"]) -> Text:
    """CLIP's texts, which have no masks: each ends at its largest id."""
    return Text(ids, torch.arange(ids.shape[1]) <= ids.argmax(1, keepdim=True))


def batch_of(case: Case, image: str = "image", **rest: Any) -> Batch:
    text = text_of(case)
    return Batch(0, 0, torch.arange(len(text)), image=Image.from_padded(case.input(image)), text=text, **rest)


def hinge_batch(case: Case) -> Batch:
    """Captions with lengths, and features of images: one vector each (VSE++), or one for each region (SCAN)."""
    features, ids, lengths = case.input("image_features"), case.input("captions"), case.input("lengths")
    features = features if features.dim() == 3 else features[:, None]
    mask = torch.ones(features.shape[:2], dtype=torch.bool)
    regions = Regions(features, torch.zeros(*features.shape[:2], 5), mask)  # neither model uses boxes
    text = Text(ids, torch.arange(ids.shape[1]) < lengths[:, None])
    return Batch(0, 0, torch.arange(len(ids)), regions=regions, text=text)


def with_label_smoothing(step: Pretraining, case: Case) -> Pretraining:
    """The step with the label smoothing of the golden's config, if it has one."""
    if "label_smoothing" in case.config:
        smoothing = case.config["label_smoothing"]
        step.objectives = tuple(
            replace(objective, label_smoothing=smoothing)
            if isinstance(objective, (LMLoss, MaskedCaptionLoss))
            else objective
            for objective in step.objectives
        )
    return step


def padded(tokens: Tokens) -> Recomputed:
    return Recomputed(tokens.to_padded(), tokens.mask)


def patch_grid(tokens: Tokens) -> Recomputed:
    """Patch tokens as (b, rows, columns, d), zero outside of the image."""
    patches = tokens.select(name="patches")
    (grid,) = (span.grid for span in patches.layout.spans if span.grid)
    values = torch.where(patches.mask[:, :, None], patches.to_padded(), 0.0)
    return Recomputed(values.unflatten(1, grid), patches.mask.unflatten(1, grid))
