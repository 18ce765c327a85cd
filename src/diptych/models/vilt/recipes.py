"""ViLT's runs: the paper's, and two that fit a small machine."""

from __future__ import annotations

from dataclasses import replace

from diptych.config.data import ImageSettings
from diptych.config.datasets import steps
from diptych.config.run import Finetune, Objectives, Pretrain
from diptych.config.training import Optimizer, Training
from diptych.models.common_recipes import WIDEST, vqa_v2
from diptych.models.common_recipes import frozen as on_frozen_features
from diptych.models.vilt.config import ViLTConfig


def base() -> Pretrain:
    """ViLT-B/32 as published (Kim et al. 2021, section 4.1): 200,000 steps of 4,096 pairs, begun from ImageNet weights."""
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
    """21 million parameters, three quarters of them words: learns on Flickr8k within an hour of two cores.

    It is to start from `vit.taught`, by way of `small_words`: from random weights matching stays on its floor.
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


def small_words() -> Pretrain:
    """The stage between `vit.taught` and `small`: masked words alone. Half of the pieces are hidden, where the paper hides
    15 %: with less text to lean on the picture has to be read, which is what matching needs.
    """
    run = small()
    return replace(
        run,
        recipe="vilt.small_words",
        objectives=replace(run.objectives, itm=0.0, wpa=0.0, mask_rate=0.5),
        training=replace(
            run.training, steps=1000, optimizer=replace(run.training.optimizer, learning_rate=1e-3, warmup=100)
        ),
    )


def tiny() -> Pretrain:
    """For the built-in world and the 114 pieces it is spoken in: 80-pixel pictures, minutes of two cores.

    Half of the pieces are hidden, as in `small_words`. Other data needs ``--model.vocab_size 30522``.
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
    """On the frozen features that other systems' `small` recipes learn from, so that they can be compared.

    Differs: no word-patch alignment, for boxes are no patches.
    """
    model = ViLTConfig(dim=192, depth=3, num_heads=4, mlp_dim=384, grid=(7, 7), dropout=0.0)
    return on_frozen_features("vilt.frozen", model, Objectives(itm=1.0, mlm=1.0), widen=WIDEST)


def vqa() -> Finetune:
    """VQA v2, 10 epochs of 256 questions (section 4.2 and the official configuration), from a run of `base`.

    Differs: train alone, where the paper adds val but for 1,000 images.
    """
    optimizer = Optimizer(learning_rate=1e-4, weight_decay=0.01, warmup=0.1, head_lr_multiplier=10.0)
    return vqa_v2("vilt.vqa", base(), base().images, 256, 10, optimizer)


def retrieval() -> Finetune:
    """COCO's captions, each image with one true text and 15 false ones, 10 epochs of 256 (section 4.2), from a run of `base`."""
    run, optimizer = base(), Optimizer(learning_rate=1e-4, weight_decay=0.01, warmup=0.1)
    training = Training(steps=steps(("COCO",), 256, 10), batch_size=256, checkpoint_every=1000, optimizer=optimizer)
    return Finetune("retrieval", run.model, run.images, training, recipe="vilt.retrieval", negative_texts=15)
