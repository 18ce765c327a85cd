"""Downstream runs: on any pre-trained run at a batch that fits a small machine, as the ViLT paper makes them (section 4.1);
and what the systems' own recipes (`albef.vqa`, `vilt.retrieval` and others) share.
"""

from __future__ import annotations

from dataclasses import replace

from diptych.data.settings import ImageSettings
from diptych.recipes.corpora import VQA_V2
from diptych.recipes.run import Finetune, Pretrain
from diptych.train.settings import Optimizer, Training


def vqa(run: Pretrain) -> Finetune:
    """Closed VQA on the model and pictures of a pre-training recipe; the new head learns ten times faster, as in the paper."""
    return _task("vqa", run, Optimizer(learning_rate=3e-4, weight_decay=0.01, warmup=0.1, head_multiplier=10.0))


def retrieval(run: Pretrain) -> Finetune:
    """Retrieval by ranking one true text among false ones."""
    return _task("retrieval", run, Optimizer(learning_rate=1e-4, weight_decay=0.01, warmup=0.1))


def classification(run: Pretrain) -> Finetune:
    """One of the data's classes per picture, by a model of images alone."""
    return _task("classification", run, Optimizer(learning_rate=5e-4, weight_decay=0.05, warmup=0.1, schedule="cosine"))


def _task(task: str, run: Pretrain, optimizer: Optimizer) -> Finetune:
    training = Training(steps=1000, batch=64, precision=run.training.precision, optimizer=optimizer)
    return Finetune(task=task, model=run.model, images=run.images, training=training, widen=run.widen)


def vqa_v2(
    recipe: str, run: Pretrain, images: ImageSettings, batch: int, epochs: int, optimizer: Optimizer
) -> Finetune:
    """VQA v2 as a paper fine-tunes on it: answers given at least nine times are classes, 3,129 of them."""
    training = Training(steps=round(VQA_V2 * epochs / batch), batch=batch, checkpoint_every=1000, optimizer=optimizer)
    task = Finetune(
        task="vqa", model=run.model, images=images, training=training, recipe=recipe, embed=run.embed, answers_least=9
    )
    return sized(task) if run.embed.image == "own" else task


def sized(run: Finetune) -> Finetune:
    """The run with a position for each patch of its pictures, where they are all of one size."""
    size = run.images.size
    if size is None or not hasattr(run.model, "grid"):
        return run
    rows, columns = (side // run.images.patch for side in size)
    return replace(run, model=replace(run.model, grid=(rows, columns)))  # type: ignore[call-arg]
