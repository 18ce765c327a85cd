"""The demo's runs: what `make demo` does, sized for some minutes of two cores."""

from __future__ import annotations

from dataclasses import replace

from diptych.config.run import Evaluation, Finetune, Pretrain
from diptych.models import common_recipes
from diptych.models.vlmo import recipes as vlmo

DATA = "scenes:8000"
VQA = Evaluation(task="vqa", data=DATA, split="val")
RETRIEVAL = Evaluation(task="retrieval", data=DATA, split="val", gallery=100, captions=1)


def pretraining(seed: int = 0) -> Pretrain:
    run = vlmo.tiny()
    return replace(run, data=DATA, training=replace(run.training, steps=450, workers=1, seed=seed))


def vqa(seed: int = 0) -> Finetune:
    """The model learns at a third of the head's rate, not a tenth as in the paper: 200 steps are few."""
    run = _short(common_recipes.vqa(vlmo.tiny()), 200, seed)
    optimizer = replace(run.training.optimizer, learning_rate=1e-3, head_lr_multiplier=3.0)
    return replace(run, training=replace(run.training, optimizer=optimizer))


def retrieval(seed: int = 0) -> Finetune:
    return replace(_short(common_recipes.retrieval(vlmo.tiny()), 50, seed), negative_texts=2)


def _short(run: Finetune, steps: int, seed: int) -> Finetune:
    return replace(
        run, data=DATA, recipe="vlmo.tiny", training=replace(run.training, steps=steps, workers=1, seed=seed)
    )
