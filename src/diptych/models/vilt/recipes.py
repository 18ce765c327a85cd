"""ViLT's recipes: the paper's (Kim et al., ICML 2021), and some that fit a small machine."""

from __future__ import annotations

from dataclasses import replace

from diptych.config.data import ImageSettings
from diptych.config.datasets import epochs_to_steps
from diptych.config.objectives import ITM, MLM, WPA, Objectives
from diptych.config.run import Finetune, Pretrain
from diptych.config.tasks import RetrievalOptions
from diptych.config.training import Optimizer, Training
from diptych.models.common_recipes import INIT_SCALE, on_frozen_features, vqa_v2
from diptych.models.vilt.config import ViLTConfig


def base() -> Pretrain:
    """ViLT-B/32 as published (section 4.1): ITM, MLM and word-patch alignment, 200,000 steps of 4,096 pairs. To be
    initialised from a ViT trained on ImageNet (`init_image_from`).
    """
    return Pretrain(
        recipe="vilt.base",
        model=ViLTConfig(),
        objectives=Objectives(itm=ITM(), mlm=MLM(), wpa=WPA(weight=0.1)),
        images=ImageSettings(shorter_side=384, patch_size=32, augment=True),
        training=Training(
            steps=200_000,
            batch_size=4096,
            checkpoint_every=1000,
            optimizer=Optimizer(learning_rate=1e-4, weight_decay=0.01, warmup=2500),
        ),
        max_patches=200,
    )


def small() -> Pretrain:
    """ITM, MLM and word-patch alignment: 2,000 steps of 64 pairs at 160 pixels, less than 1 h on two cores for
    Flickr8k. 21 million parameters, three quarters of them word embeddings.

    To be initialised from `vit.distilled`, by way of `small_text`: from random weights the ITM loss stays at chance.
    """
    return Pretrain(
        recipe="vilt.small",
        model=ViLTConfig(dim=256, depth=6, num_heads=4, mlp_dim=1024, patch_size=32, grid=(5, 7), dropout=0.0),
        objectives=Objectives(itm=ITM(), mlm=MLM(), wpa=WPA(weight=0.1)),
        images=ImageSettings(shorter_side=160, longer_ratio=1.5, patch_size=32),
        training=Training(
            steps=2000,
            batch_size=64,
            optimizer=Optimizer(learning_rate=6e-4, weight_decay=0.05, warmup=100),
        ),
    )


def small_text() -> Pretrain:
    """MLM only, the stage between `vit.distilled` and `small`: 1,000 steps of 64 pairs. Half of the tokens are masked
    (the paper: 15 %): with less text as context the model has to use the image, as ITM requires.
    """
    run = small()
    return replace(
        run,
        recipe="vilt.small_text",
        objectives=Objectives(mlm=MLM(rate=0.5)),
        training=replace(
            run.training, steps=1000, optimizer=replace(run.training.optimizer, learning_rate=1e-3, warmup=100)
        ),
    )


def tiny() -> Pretrain:
    """ITM, MLM and word-patch alignment for the built-in synthetic scenes and their vocabulary of 114 tokens: 1,500
    steps of 64 pairs at 80 pixels, minutes on two cores.

    Half of the tokens are masked, as in `small_text`. Other data needs ``--model.vocab_size 30522``.
    """
    run = small()
    return replace(
        run,
        recipe="vilt.tiny",
        model=replace(
            run.model, dim=128, depth=4, num_heads=4, mlp_dim=512, patch_size=16, grid=(5, 7), vocab_size=114
        ),
        objectives=replace(run.objectives, mlm=MLM(rate=0.5)),
        images=ImageSettings(shorter_side=80, longer_ratio=1.5, patch_size=16),
        training=replace(
            run.training, steps=1500, optimizer=replace(run.training.optimizer, learning_rate=1e-3, warmup=100)
        ),
    )


def frozen() -> Pretrain:
    """ITM and MLM on frozen features, for comparison with the other systems' `small` recipes: 240 steps of 128 pairs.

    Differs: no word-patch alignment, because boxes are not patches.
    """
    model = ViLTConfig(dim=192, depth=3, num_heads=4, mlp_dim=384, grid=(7, 7), dropout=0.0)
    return on_frozen_features("vilt.frozen", model, Objectives(itm=ITM(), mlm=MLM()), init_scale=INIT_SCALE)


def vqa() -> Finetune:
    """VQA v2, 10 epochs of 256 questions (section 4.2 and the official configuration), from a run of `base`.

    Differs: trained on the train split only; the paper adds val except 1,000 images.
    """
    optimizer = Optimizer(learning_rate=1e-4, weight_decay=0.01, warmup=0.1, part_rates=("head=10",))
    return vqa_v2("vilt.vqa", base(), base().images, 256, 10, optimizer)


def retrieval() -> Finetune:
    """Ranking of COCO captions, each image with its true text and 15 negative texts: 10 epochs of 256 (section 4.2),
    from a run of `base`.
    """
    run, optimizer = base(), Optimizer(learning_rate=1e-4, weight_decay=0.01, warmup=0.1)
    training = Training(
        steps=epochs_to_steps(("COCO",), 256, 10), batch_size=256, checkpoint_every=1000, optimizer=optimizer
    )
    return Finetune(
        task="retrieval",
        model=run.model,
        images=run.images,
        training=training,
        recipe="vilt.retrieval",
        options=RetrievalOptions(),
    )
