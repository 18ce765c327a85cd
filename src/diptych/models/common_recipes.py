"""Downstream runs: on any pre-trained run at a batch that fits a small machine, as the ViLT paper makes them (section 4.1);
and what the systems' own recipes (`albef.vqa`, `vilt.retrieval` and others) share.

What the `small` recipes share: every system learns from the same frozen features, so that what differs is the system.

Matching is taught by images drawn at random, not by hard negatives, also where the paper has these: what was drawn made no difference
to retrieval here (LOG.md, "seven ways"), and hard ones fuse three pairs a sample, where random ones fuse one.

Images are what all stages of an ImageNet CNN see, pooled in fixed boxes (extra ``cnn``), texts MiniLM's word states (extra
``minilm``), which is read onward where a model learns to write with them (CoCa, BEiT-3). Both are computed once for each picture and caption, but for captions
with hidden words, which are read anew. On Flickr8k a run takes 4 to 22 minutes of a busy core (docs/results.md): much longer, and the 6,000 photographs are learned by heart.
"""

from __future__ import annotations

from dataclasses import replace

from diptych.config.data import ImageSettings
from diptych.config.datasets import VQA_V2
from diptych.config.run import Embedders, Finetune, Objectives, Pretrain, WordStates
from diptych.config.training import Optimizer, Training
from diptych.models.configs import Model


def vqa(run: Pretrain) -> Finetune:
    """Closed VQA on the model and pictures of a pre-training recipe; the new head learns ten times faster, as in the paper."""
    return _task("vqa", run, Optimizer(learning_rate=3e-4, weight_decay=0.01, warmup=0.1, head_lr_multiplier=10.0))


def retrieval(run: Pretrain) -> Finetune:
    """Retrieval by ranking one true text among false ones."""
    return _task("retrieval", run, Optimizer(learning_rate=1e-4, weight_decay=0.01, warmup=0.1))


def classification(run: Pretrain) -> Finetune:
    """One of the data's classes per picture, by a model of images alone."""
    return _task("classification", run, Optimizer(learning_rate=5e-4, weight_decay=0.05, warmup=0.1, schedule="cosine"))


def _task(task: str, run: Pretrain, optimizer: Optimizer) -> Finetune:
    training = Training(steps=1000, batch_size=64, precision=run.training.precision, optimizer=optimizer)
    return Finetune(task=task, model=run.model, images=run.images, training=training, init_scale=run.init_scale)


def vqa_v2(
    recipe: str, run: Pretrain, images: ImageSettings, batch: int, epochs: int, optimizer: Optimizer
) -> Finetune:
    """VQA v2 as a paper fine-tunes on it: answers given at least nine times are classes, 3,129 of them."""
    training = Training(
        steps=round(VQA_V2 * epochs / batch), batch_size=batch, checkpoint_every=1000, optimizer=optimizer
    )
    task = Finetune(
        task="vqa",
        model=run.model,
        images=images,
        training=training,
        recipe=recipe,
        embedders=run.embedders,
        min_answer_count=9,
    )
    return sized(task) if run.embedders.image == "own" else task


def sized(run: Finetune) -> Finetune:
    """The run with a position for each patch of its pictures, where they are all of one size."""
    size = run.images.size
    if size is None or not hasattr(run.model, "grid"):
        return run
    rows, columns = (side // run.images.patch_size for side in size)
    return replace(run, model=replace(run.model, grid=(rows, columns)))  # type: ignore[call-arg]


SCALES = ((1.0, 1.0, 1), (0.6, 0.6, 2), (0.4, 0.4, 3))
"""14 boxes: the whole picture, its quarters, its ninths, each somewhat larger."""

WIDER, WIDEST = 2.0, 3.5
"""BERT draws weights with 0.02, which for these models' 192 channels is little: matching leaves its floor later, and contrast
generalises better (docs/results.md, LOG.md). 0.07, 1 / √192 as in CLIP's rule, is for systems that do not contrast; 0.04 for
those that do, and what they start from."""

IMAGES = ImageSettings(shorter_side=448, patch_size=32, square=True)

FEATURES, DETECTED = 2024, 1000
"""Numbers per box, and classes that the CNN tells of each."""


def frozen(
    recipe: str, model: Model, objectives: Objectives, steps: int = 240, batch: int = 128, learning_rate: float = 1e-3,
    text: WordStates = "minilm", widen: float = 1.0,
) -> Pretrain:  # fmt: skip
    """A run on frozen features."""
    return Pretrain(
        recipe=recipe,
        model=model,
        objectives=objectives,
        init_scale=widen,
        images=IMAGES,
        embedders=Embedders(image="hypercolumns", scales=SCALES, text=text, dropout=0.1),
        training=Training(
            steps=steps,
            batch_size=batch,
            workers=0,
            checkpoint_every=200,
            optimizer=Optimizer(learning_rate=learning_rate, weight_decay=0.05, warmup=0.1, schedule="cosine"),
        ),
    )
