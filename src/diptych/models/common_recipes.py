"""What recipes of several systems share: fine-tuning of any pre-trained run, and pre-training on frozen features.

Fine-tuning follows the ViLT paper (section 4.1) at a batch size that fits a small machine; the systems' own recipes are
`albef.vqa`, `vilt.retrieval` and others.

The `small` recipes all train on the same frozen features, so that what differs between them is the system. Images are
features of all stages of an ImageNet CNN, pooled in fixed boxes (extra ``cnn``); texts are word states of MiniLM (extra
``minilm``), with a causal mask for models that learn to generate from them (CoCa, BEiT-3). Both are computed once per
image and caption; captions with masked words are encoded anew. On Flickr8k a run takes 4 to 22 min of a busy core
(docs/results/retrieval.md). Much longer runs overfit its 6,000 images.

ITM uses random negatives, even if the paper uses hard ones: the choice made no difference to retrieval here
(docs/decisions/0014), and hard negatives fuse three pairs per sample, random ones one.
"""

from __future__ import annotations

from dataclasses import replace

from diptych.config.data import Embedders, ImageSettings, TextEmbedder
from diptych.config.datasets import VQA_V2_QUESTIONS
from diptych.config.objectives import Objectives
from diptych.config.run import Finetune, Pretrain
from diptych.config.tasks import FINETUNED, VQAOptions
from diptych.config.training import Optimizer, Training
from diptych.models.configs import Model, RegionModel

FINETUNING = Optimizer(learning_rate=1e-4, weight_decay=0.01, warmup=0.1)
OPTIMIZERS = {
    # the new head has ten times the learning rate, as in the ViLT paper
    "vqa": replace(FINETUNING, learning_rate=3e-4, part_rates=("head=10",)),
    # few regions overlap with the true box: that must be learned first
    "grounding": replace(FINETUNING, learning_rate=5e-4, weight_decay=0.05, schedule="cosine"),
    "classification": Optimizer(learning_rate=5e-4, weight_decay=0.05, warmup=0.1, schedule="cosine"),
}
"""The optimizer of each task that has not that of FINETUNING."""


PROBE = Optimizer(
    name="sgd",
    learning_rate=0.002,
    momentum=0.9,
    weight_decay=5e-5,
    decay_all=True,
    warmup=0,
    schedule="cosine",
    final_rate=0.01,
    rate_per_epoch=True,
    max_grad_norm=0.0,
)
"""SGD of MACA's linear probes: a cosine from one epoch to the next that ends at a hundredth of the rate."""


def finetuning(task: str, run: Pretrain) -> Finetune:
    """Fine-tuning for a task with the model and images of a pre-training recipe: 1,000 steps of 64 samples."""
    optimizer = OPTIMIZERS.get(task, FINETUNING)
    training = Training(steps=1000, batch_size=64, precision=run.training.precision, optimizer=optimizer)
    if (
        task == "grounding"
    ):  # val accuracy during training; `keep_best` chooses the weights by it, if there is a val split
        training = replace(training, evaluate_every=200)
    return Finetune(
        task=task,
        options=FINETUNED[task].options(),
        model=run.model,
        images=run.images,
        embedders=run.embedders if isinstance(run.model, RegionModel) else Embedders(),  # others read pixels
        training=training,
        init_scale=run.init_scale,
    )


def vqa_v2(
    recipe: str, run: Pretrain, images: ImageSettings, batch: int, epochs: int, optimizer: Optimizer
) -> Finetune:
    """VQA v2 with a paper's batch size, epochs and optimizer; answers that occur at least nine times are the classes,
    3,129 of them.
    """
    training = Training(
        steps=round(VQA_V2_QUESTIONS * epochs / batch), batch_size=batch, checkpoint_every=1000, optimizer=optimizer
    )
    task = Finetune(
        task="vqa",
        model=run.model,
        images=images,
        training=training,
        recipe=recipe,
        embedders=run.embedders,
        options=VQAOptions(min_answer_count=9),
    )
    return with_image_grid(task) if run.embedders.image == "own" else task


def with_image_grid(run: Finetune) -> Finetune:
    """The run with one position per patch of its images, if these all have one size."""
    size = run.images.size
    if size is None or not hasattr(run.model, "grid"):
        return run
    rows, columns = (side // run.images.patch_size for side in size)
    return replace(run, model=replace(run.model, grid=(rows, columns)))  # type: ignore[call-arg]


BOX_SCALES = ((1.0, 1.0, 1), (0.6, 0.6, 2), (0.4, 0.4, 3))
"""14 boxes: the whole image, 4 overlapping boxes of 60 % of its height and width, and 9 of 40 %."""

CONTRASTIVE_INIT_SCALE, INIT_SCALE = 2.0, 3.5
"""Factors on BERT's initial std of 0.02, which is small for the 192 channels of these models: with a larger std the ITM
loss leaves chance sooner, and ITC generalises better (docs/decisions/0014). An std of 0.07, 1 / √192 as in CLIP's rule,
for systems without ITC; of 0.04 for those with ITC, and for runs that initialise them.
"""

IMAGES = ImageSettings(shorter_side=448, patch_size=32, square=True)

CNN_FEATURE_DIM, NUM_CNN_CLASSES = 2024, 1000
"""Dimension of the CNN's features of a box, and the number of classes that it predicts for each box."""


def on_frozen_features(
    recipe: str,
    model: Model,
    objectives: Objectives,
    steps: int = 240,
    batch: int = 128,
    learning_rate: float = 1e-3,
    text: TextEmbedder = "minilm",
    init_scale: float = 1.0,
) -> Pretrain:
    """Small pre-training run on frozen image and text features, by default 240 steps of 128 pairs."""
    return Pretrain(
        recipe=recipe,
        model=model,
        objectives=objectives,
        init_scale=init_scale,
        images=IMAGES,
        embedders=Embedders(image="hypercolumns", scales=BOX_SCALES, text=text, dropout=0.1),
        training=_small_training(steps, batch, learning_rate, workers=0),
    )


def on_images(recipe: str, model: Model, objectives: Objectives, init_scale: float) -> Pretrain:
    """Small pre-training run whose model embeds patches and words itself: 240 steps of 64 images of 224 pixels."""
    return Pretrain(
        recipe=recipe,
        model=model,
        objectives=objectives,
        init_scale=init_scale,
        images=replace(IMAGES, shorter_side=224),
        training=_small_training(240, 64, 1e-3, workers=1),
    )


def _small_training(steps: int, batch: int, learning_rate: float, workers: int) -> Training:
    """Cosine schedule with a warm-up of a tenth of the steps."""
    optimizer = Optimizer(learning_rate=learning_rate, weight_decay=0.05, warmup=0.1, schedule="cosine")
    return Training(steps=steps, batch_size=batch, workers=workers, checkpoint_every=200, optimizer=optimizer)
