"""ALBEF-base: a pre-training step with the momentum model, and re-ranking, beside a reference that runs as the official
code does (albef_reference.py). The weights are ours.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor

from bench.speed.albef_reference import Reference
from bench.speed.harness import (
    Work,
    autocast,
    compare_steps,
    compare_tensors,
    first_channel,
    rerank_ours,
    training_step,
)
from bench.speed.inputs import texts
from diptych.batch import Batch, Image
from diptych.models.albef.checkpoint import names
from diptych.models.albef.config import ALBEFConfig
from diptych.models.albef.model import ALBEF
from diptych.modules.tokens import packing
from diptych.objectives.itc import ITCLoss
from diptych.objectives.itm import HardNegativeITMLoss
from diptych.objectives.mlm import MLMLoss
from diptych.objectives.momentum import MomentumDistillation, Queue
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import FixedChoices, KeyedChoices, WordMasking
from diptych.utils.state_dict import named_weights

OFFICIAL, LOOP = "reference run as the official code", "reference run as the official code, image by image"
SIZE, SIDE, RERANKED_SIDE, K = 4, 256, 384, 128
ALPHA = 0.4
WEIGHTS = {"itc": 1.0, "itm": 1.0, "mlm": 1.0}


def momentum_step(side: int) -> tuple[MomentumDistillation, Reference]:
    """Our step and the reference, with the same weights, for square images of this side; no dropout."""
    torch.manual_seed(0)
    grid = (side // 16, side // 16)
    config = ALBEFConfig(dropout=0.0, grid=grid)
    model, masking = config.build(), WordMasking(whole_words=False)
    objectives = [MLMLoss(masking), ITCLoss(), HardNegativeITMLoss()]
    student = Pretraining(model, model.pretraining_heads(), objectives)
    ours = MomentumDistillation(student, Queue(65536, config.embed_dim))
    arguments = {"text_depth": config.text_depth, "fusion_depth": config.fusion_depth, "num_images": 1}
    reference = Reference(grid[0] * grid[1])
    reference.load_state_dict(names(arguments, "pretraining").to_official(named_weights(ours)))
    return ours, reference


def step(precision: str) -> Work:
    """Captions' lengths; the same masked words and negatives on both sides."""
    ours, reference = (module.train() for module in momentum_step(SIDE))
    text, pixels = texts(SIZE), torch.randn(SIZE, 3, SIDE, SIDE)
    batch = Batch(0, 0, torch.arange(SIZE), Image.from_full(pixels), text)
    masked = KeyedChoices(batch).mask_text(text, WordMasking(whole_words=False))
    negatives = (torch.arange(2 * SIZE) + 1) % SIZE
    draws = FixedChoices(masked, negative_images=negatives[:SIZE], negative_texts=negatives[SIZE:])
    labels = masked.original.masked_fill(~masked.masked, -100)
    official = partial(reference, pixels, text.ids, text.mask, masked.text.ids, labels, negatives, ALPHA)
    run = training_step(ours, lambda _: ours(batch, draws=draws), WEIGHTS, precision)
    run_reference = training_step(reference, lambda _: official(), WEIGHTS, precision)
    return Work(run, {OFFICIAL: run_reference}, compare_steps(precision, 1e-5))


@torch.no_grad()
def reranking(precision: str) -> Work:
    """One image with 128 texts; images and texts were encoded before, which both leave out."""
    ours, reference = momentum_step(RERANKED_SIDE)
    model, bert = cast(ALBEF, ours.eval().student.model), reference.eval().text_encoder.bert
    text, pixels = texts(K), torch.randn(1, 3, RERANKED_SIDE, RERANKED_SIDE)
    with autocast(precision), packing():
        image, encoded = model.encode_image(Image.from_full(pixels)), model.encode_text(text)
        states, words = image.to_padded(), encoded.to_padded()

    @torch.no_grad()
    def loop(_: int) -> Tensor:
        with autocast(precision):
            fused = [bert.fuse(words, text.mask, one.repeat(len(words), 1, 1)) for one in states]
        return torch.stack([first_channel(hidden[:, 0].float()) for hidden in fused])

    scores = rerank_ours(model, precision)
    return Work(lambda _: scores(image, encoded), {LOOP: loop}, compare_tensors(precision, "scores", 1e-5, 0.1))
