"""ViT's recipes: distillation from an ImageNet CNN, and classification of CIFAR-100."""

from __future__ import annotations

from dataclasses import replace

from diptych.config.data import IMAGENET_MEAN, IMAGENET_STD, ImageSettings
from diptych.config.objectives import ClassDistillation, GridDistillation, Objectives
from diptych.config.run import Finetune, Pretrain
from diptych.config.tasks import NoOptions
from diptych.config.training import Optimizer, Training
from diptych.models.common_recipes import PROBE
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


TRUNK = ("patches.*", "blocks.*", "norm.*")
"""The weights that are frozen for a linear probe: all but the classifier and the hidden layer before it."""


def cifar100_b32() -> Finetune:
    """ViT-B/32 on CIFAR-100 with its trunk frozen, 100 epochs of 128 images at 224 pixels; `init_from` is an imported
    ``jx_vit_base_patch32_224_in21k``.

    The head of 21,843 classes is replaced; the hidden layer before it is kept and trained.

    Source: github.com/xxayt/MACA, commit e12a584, vit_train.py (91.82 % top-1 there).
    """
    return _cifar100("vit.cifar100_b32", ViTConfig(patch_size=32, grid=(7, 7), representation=768), 128, 0.002)


def cifar100_l16() -> Finetune:
    """ViT-L/16 on CIFAR-100 as `cifar100_b32`, in batches of 32; `init_from` is an imported
    ``jx_vit_large_patch16_224_in21k`` (93.27 % top-1 by MACA).
    """
    model = ViTConfig(dim=1024, depth=24, num_heads=16, mlp_dim=4096, representation=1024)
    return _cifar100("vit.cifar100_l16", model, 32, 0.004)


def _cifar100(recipe: str, model: ViTConfig, batch: int, rate: float) -> Finetune:
    """MACA's linear probe: SGD, a cosine from one epoch to the next that ends at a hundredth of the rate."""
    optimizer = replace(PROBE, learning_rate=rate)
    images = ImageSettings(
        shorter_side=256,
        crop=224,
        patch_size=model.patch_size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        random_crop=0.08,
        resample="bilinear",
    )
    return Finetune(
        task="classification",
        options=NoOptions(),
        recipe=recipe,
        model=replace(model, num_classes=100),
        images=images,
        own_normalization=True,
        freeze=TRUNK,
        training=Training(
            epochs=100,
            batch_size=batch,
            evaluate_epochs=1,
            keep_best="classification/accuracy",
            optimizer=optimizer,
        ),
        data="cifar-100-python",
    )


def small() -> Finetune:
    """CIFAR-100 classification (`data` is its folder) from random weights: images of 32 pixels in patches of 4, 1,000
    steps of 128.
    """
    return Finetune(
        task="classification",
        options=NoOptions(),
        recipe="vit.small",
        model=ViTConfig(dim=128, depth=4, num_heads=4, mlp_dim=512, patch_size=4, grid=(8, 8), num_classes=100),
        images=ImageSettings(shorter_side=32, patch_size=4, square=True, random_crop=0.4),
        training=Training(
            steps=1000,
            batch_size=128,
            optimizer=Optimizer(learning_rate=1e-3, weight_decay=0.05, warmup=0.1, schedule="cosine"),
        ),
        data="cifar-100-python",
    )
