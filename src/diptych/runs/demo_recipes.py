"""Runs of `diptych demo`, sized for a few minutes on two CPU cores."""

from __future__ import annotations

from dataclasses import replace

from diptych.config import tasks
from diptych.config.run import Finetune, Pretrain
from diptych.config.tasks import RetrievalOptions
from diptych.models import common_recipes
from diptych.models.vlmo import recipes as vlmo

DATA = "scenes:8000"
VQA = tasks.VQA(data=DATA, split="val")
RETRIEVAL = tasks.Retrieval(data=DATA, split="val", gallery=100, captions=1)


def pretraining(seed: int = 0) -> Pretrain:
    """A tiny VLMo, 450 steps."""
    run = vlmo.tiny()
    return replace(run, data=DATA, training=replace(run.training, steps=450, workers=1, seed=seed))


def vqa(seed: int = 0) -> Finetune:
    """VQA, 200 steps. Differs: the model's learning rate is a third of the head's, not a tenth, as steps are few."""
    run = _short(common_recipes.finetuning("vqa", vlmo.tiny()), 200, seed)
    optimizer = replace(run.training.optimizer, learning_rate=1e-3, part_rates=("head=3",))
    return replace(run, training=replace(run.training, optimizer=optimizer))


def retrieval(seed: int = 0) -> Finetune:
    """Retrieval by a ranking head, 50 steps."""
    return replace(
        _short(common_recipes.finetuning("retrieval", vlmo.tiny()), 50, seed),
        options=RetrievalOptions(negative_texts=2),
    )


def _short(run: Finetune, steps: int, seed: int) -> Finetune:
    training = replace(run.training, steps=steps, workers=1, seed=seed)
    return replace(run, data=DATA, recipe="vlmo.tiny", training=training)
