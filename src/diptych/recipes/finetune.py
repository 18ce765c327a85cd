"""Downstream runs as the ViLT paper makes them (section 4.1), at a batch that fits a small machine."""

from __future__ import annotations

from diptych.recipes.run import Finetune, Pretrain
from diptych.train.settings import Optimizer, Training


def vqa(run: Pretrain) -> Finetune:
    """Closed VQA on the model and pictures of a pre-training recipe; the new head learns ten times faster, as in the paper."""
    return _task("vqa", run, Optimizer(learning_rate=3e-4, weight_decay=0.01, warmup=0.1, head_multiplier=10.0))


def retrieval(run: Pretrain) -> Finetune:
    """Retrieval by ranking one true text among false ones."""
    return _task("retrieval", run, Optimizer(learning_rate=1e-4, weight_decay=0.01, warmup=0.1))


def _task(task: str, run: Pretrain, optimizer: Optimizer) -> Finetune:
    training = Training(steps=1000, batch=64, precision=run.training.precision, optimizer=optimizer)
    return Finetune(task=task, model=run.model, images=run.images, training=training)  # type: ignore[arg-type]
