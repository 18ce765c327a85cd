"""The demo's runs: what `make demo` does, sized for some minutes of two cores."""

from __future__ import annotations

from dataclasses import replace

from diptych.recipes import finetune, vilt
from diptych.recipes.run import Evaluation, Finetune, Pretrain

DATA = "scenes:8000"
VQA = Evaluation(task="vqa", data=DATA, split="val")
RETRIEVAL = Evaluation(task="retrieval", data=DATA, split="val", gallery=100, captions=1)


def pretraining(seed: int = 0) -> Pretrain:
    run = vilt.tiny()
    return replace(run, data=DATA, training=replace(run.training, steps=1500, workers=1, seed=seed))


def vqa(seed: int = 0) -> Finetune:
    return _short(finetune.vqa(vilt.tiny()), 300, seed)


def retrieval(seed: int = 0) -> Finetune:
    return replace(_short(finetune.retrieval(vilt.tiny()), 150, seed), false_texts=3)


def _short(run: Finetune, steps: int, seed: int) -> Finetune:
    return replace(
        run, data=DATA, recipe="vilt.tiny", training=replace(run.training, steps=steps, workers=1, seed=seed)
    )
