"""ViT's recipes: distillation from an ImageNet CNN."""

from __future__ import annotations

from dataclasses import replace

from diptych.config.data import ImageSettings
from diptych.config.objectives import ClassDistillation, GridDistillation, Objectives
from diptych.config.run import Pretrain
from diptych.config.training import Optimizer, Training
from diptych.models.vit.config import ViTConfig


def distilled() -> Pretrain:
    """Distillation of an ImageNet CNN's features and classes (extra ``cnn``) into a small ViT, on images only: 1,000
    steps of 64 images at 160 pixels.

    Initialises `vilt.small`, instead of the ImageNet weights that the ViLT paper starts from.
    """
    return Pretrain(
        recipe="vit.distilled",
        model=ViTConfig(dim=256, depth=6, num_heads=4, mlp_dim=1024, patch_size=32, grid=(5, 7), num_classes=0),
        objectives=Objectives(grid_distillation=GridDistillation(), class_distillation=ClassDistillation(weight=0.5)),
        images=ImageSettings(shorter_side=160, longer_ratio=1.5, patch_size=32),
        training=Training(
            steps=1000,
            batch_size=64,
            optimizer=Optimizer(learning_rate=1e-3, weight_decay=0.05, warmup=200),
        ),
    )


def base() -> Pretrain:
    """ViT-B/16 at 224 pixels, the published size, for inspection and for imported checkpoints. Distils the CNN's
    classes only, because its feature grid has larger patches; the paper's supervised pre-training on ImageNet-21k is
    not reproduced.
    """
    run = distilled()
    return replace(
        run,
        recipe="vit.base",
        model=ViTConfig(),
        objectives=Objectives(class_distillation=ClassDistillation()),
        images=ImageSettings(shorter_side=224, patch_size=16, square=True, augment=True),
    )
