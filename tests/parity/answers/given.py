"""A golden's inputs as a batch, and our tokens as it has them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from diptych.batch import Batch, Image, Regions, Text
from diptych.modules.tokens import Tokens
from diptych.objectives.lm import LM
from diptych.objectives.masked_captions import MaskedCaptioning
from diptych.objectives.pretraining import Pretraining
from tests.parity.golden_case import Answer, Case


def text_of(case: Case, stem: str = "text") -> Text:
    """Texts on any number of leading dimensions, one after the other."""
    ids, masks = case.input(f"{stem}_ids"), case.input(f"{stem}_masks")
    return Text(ids.flatten(0, -2), masks.flatten(0, -2).bool())


def text_to_largest(ids: Int[Tensor, "b n"]) -> Text:
    """CLIP's texts, given without masks: they end at their largest id."""
    return Text(ids, torch.arange(ids.shape[1]) <= ids.argmax(1, keepdim=True))


def batch_of(case: Case, image: str = "image", **rest: Any) -> Batch:
    text = text_of(case)
    return Batch(0, 0, torch.arange(len(text)), image=Image.from_padded(case.input(image)), text=text, **rest)


def hinge_batch(case: Case) -> Batch:
    """Captions by their lengths, and features of images: one vector each (VSE++), or one per region (SCAN)."""
    features, ids, lengths = case.input("image_features"), case.input("captions"), case.input("lengths")
    features = features if features.dim() == 3 else features[:, None]
    real = torch.ones(features.shape[:2], dtype=torch.bool)
    regions = Regions(features, torch.zeros(*features.shape[:2], 5), real)  # whose boxes neither model reads
    text = Text(ids, torch.arange(ids.shape[1]) < lengths[:, None])
    return Batch(0, 0, torch.arange(len(ids)), regions=regions, text=text)


def smoothed(step: Pretraining, case: Case) -> Pretraining:
    """The step with the golden's label smoothing, where its config names one."""
    if "label_smoothing" in case.config:
        share = case.config["label_smoothing"]
        step.objectives = tuple(
            replace(objective, smoothing=share) if isinstance(objective, (LM, MaskedCaptioning)) else objective
            for objective in step.objectives
        )
    return step


def on_canvas(tokens: Tokens) -> Answer:
    return Answer(tokens.to_padded(), tokens.mask)


def on_grid(tokens: Tokens) -> Answer:
    """Patches where they lie, zero beside the picture."""
    patches = tokens.select(name="patches")
    (grid,) = (span.grid for span in patches.layout.spans if span.grid)
    values = torch.where(patches.mask[:, :, None], patches.to_padded(), 0.0)
    return Answer(values.unflatten(1, grid), patches.mask.unflatten(1, grid))
