"""ViLT's recipes: the paper's, and some that fit a small machine."""

from __future__ import annotations

from dataclasses import replace

from diptych.config.data import ImageSettings
from diptych.config.datasets import steps
from diptych.config.run import Finetune, Objectives, Pretrain
from diptych.config.training import Optimizer, Training
from diptych.models.common_recipes import INIT_SCALE, on_frozen_features, vqa_v2
from diptych.models.vilt.config import ViLTConfig


def base() -> Pretrain:
    """ViLT-B/32 as published (Kim et al. 2021, section 4.1): 200,000 steps of 4,096 pairs, starting from ImageNet
    weights.
    """
    return Pretrain(
        recipe="vilt.base",
        model=ViLTConfig(),
        objectives=Objectives(itm=1.0, mlm=1.0, wpa=0.1),
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
    """21 million parameters, three quarters of them word embeddings: trains on Flickr8k within an hour of two cores.

    To be initialised from `vit.distilled`, by way of `small_text`: from random weights the ITM loss stays at chance.
    """
    return Pretrain(
        recipe="vilt.small",
        model=ViLTConfig(dim=256, depth=6, num_heads=4, mlp_dim=1024, patch_size=32, grid=(5, 7), dropout=0.0),
        objectives=Objectives(itm=1.0, mlm=1.0, wpa=0.1),
        images=ImageSettings(shorter_side=160, longer_ratio=1.5, patch_size=32),
        training=Training(
            steps=2000,
            batch_size=64,
            optimizer=Optimizer(learning_rate=6e-4, weight_decay=0.05, warmup=100),
        ),
    )


def small_text() -> Pretrain:
    """The stage between `vit.distilled` and `small`: MLM alone. Half of the tokens are masked, where the paper masks 15 %:
    with less text to condition on the model has to use the image, which is what ITM needs.
    """
    run = small()
    return replace(
        run,
        recipe="vilt.small_text",
        objectives=replace(run.objectives, itm=0.0, wpa=0.0, mask_rate=0.5),
        training=replace(
            run.training, steps=1000, optimizer=replace(run.training.optimizer, learning_rate=1e-3, warmup=100)
        ),
    )


def tiny() -> Pretrain:
    """For the built-in synthetic scenes and their vocabulary of 114 tokens: images of 80 pixels, minutes of two cores.

    Half of the tokens are masked, as in `small_text`. Other data needs ``--model.vocab_size 30522``.
    """
    run = small()
    return replace(
        run,
        recipe="vilt.tiny",
        model=replace(
            run.model, dim=128, depth=4, num_heads=4, mlp_dim=512, patch_size=16, grid=(5, 7), vocab_size=114
        ),
        objectives=replace(run.objectives, mask_rate=0.5),
        images=ImageSettings(shorter_side=80, longer_ratio=1.5, patch_size=16),
        training=replace(
            run.training, steps=1500, optimizer=replace(run.training.optimizer, learning_rate=1e-3, warmup=100)
        ),
    )


def frozen() -> Pretrain:
    """On the frozen features that other systems' `small` recipes train on, for comparison with them.

    Differs: no word-patch alignment, for boxes are not patches.
    """
    model = ViLTConfig(dim=192, depth=3, num_heads=4, mlp_dim=384, grid=(7, 7), dropout=0.0)
    return on_frozen_features("vilt.frozen", model, Objectives(itm=1.0, mlm=1.0), init_scale=INIT_SCALE)


def vqa() -> Finetune:
    """VQA v2, 10 epochs of 256 questions (section 4.2 and the official configuration), from a run of `base`.

    Differs: trained on train alone, where the paper adds val but for 1,000 images.
    """
    optimizer = Optimizer(learning_rate=1e-4, weight_decay=0.01, warmup=0.1, head_lr_multiplier=10.0)
    return vqa_v2("vilt.vqa", base(), base().images, 256, 10, optimizer)


def retrieval() -> Finetune:
    """COCO captions: each image with its true text and 15 negative ones, 10 epochs of 256 (section 4.2), from a run of
    `base`.
    """
    run, optimizer = base(), Optimizer(learning_rate=1e-4, weight_decay=0.01, warmup=0.1)
    training = Training(steps=steps(("COCO",), 256, 10), batch_size=256, checkpoint_every=1000, optimizer=optimizer)
    return Finetune("retrieval", run.model, run.images, training, recipe="vilt.retrieval", negative_texts=15)
