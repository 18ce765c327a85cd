"""A golden's inputs as a batch, and our tokens as it has them."""

from __future__ import annotations

from typing import Any

import torch

from diptych.inputs import Batch, Image, Text
from diptych.tokens import Tokens
from diptych.weights.golden import Answer, Case


def text_of(case: Case, stem: str = "text") -> Text:
    """Texts on any number of leading dimensions, one after the other."""
    ids, masks = case.input(f"{stem}_ids"), case.input(f"{stem}_masks")
    return Text(ids.flatten(0, -2), masks.flatten(0, -2).bool())


def batch_of(case: Case, image: str = "image", **rest: Any) -> Batch:
    text = text_of(case)
    return Batch(0, 0, torch.arange(len(text)), image=Image.from_canvas(case.input(image)), text=text, **rest)


def on_canvas(tokens: Tokens) -> Answer:
    return Answer(tokens.canvas(), tokens.real)


def on_grid(tokens: Tokens) -> Answer:
    """Patches where they lie, zero beside the picture."""
    patches = tokens.by_span(name="patches")
    (grid,) = (span.grid for span in patches.layout.spans if span.grid)
    values = torch.where(patches.real[:, :, None], patches.canvas(), 0.0)
    return Answer(values.unflatten(1, grid), patches.real.unflatten(1, grid))
