"""CrossViT's recipes (Chen et al., ICCV 2021): image classification, its only task."""

from __future__ import annotations

from diptych.config.data import IMAGENET_MEAN, IMAGENET_STD, ImageSettings
from diptych.config.run import Finetune
from diptych.config.tasks import NoOptions
from diptych.config.training import Optimizer, Training
from diptych.models.common_recipes import PROBE
from diptych.models.crossvit.config import CrossViTConfig


def small() -> Finetune:
    """CIFAR-100 classification (`data` is its folder) from random weights, 1,000 steps of 128: images of 32 pixels in
    patches of 4 and, resized to 48 pixels, of 8. Horizontal flip only: RandAugment translates by more pixels than these
    images are wide.
    """
    model = CrossViTConfig(
        image_sizes=(32, 48),
        patch_sizes=(4, 8),
        dims=(96, 192),
        num_heads=(3, 3),
        mlp_dims=(288, 576),
        stages=((1, 2, 0), (1, 2, 0)),
        num_classes=100,
    )
    optimizer = Optimizer(learning_rate=5e-4, weight_decay=0.05, warmup=0.1, schedule="cosine")
    return Finetune(
        options=NoOptions(),
        task="classification",
        model=model,
        images=ImageSettings(shorter_side=32, square=True),
        training=Training(steps=1000, batch_size=128, optimizer=optimizer),
        data="cifar-100-python",
        recipe="crossvit.small",
    )


def cifar100_15() -> Finetune:
    """CrossViT-15 on CIFAR-100 with its trunk frozen, as `vit.cifar100_b32`: SGD, 100 epochs of 128 images at 240
    pixels, a cosine from one epoch to the next; `init_from` is an imported CrossViT-15 trained on ImageNet.

    Differs: the paper's transfer experiments train all weights (`freeze` empty), with its augmentation.
    """
    model = CrossViTConfig(
        dims=(192, 384), num_heads=(6, 6), mlp_dims=(576, 1152), stages=((1, 5, 0),) * 3, num_classes=100
    )
    images = ImageSettings(shorter_side=274, crop=240, mean=IMAGENET_MEAN, std=IMAGENET_STD, random_crop=0.08)
    return Finetune(
        options=NoOptions(),
        task="classification",
        model=model,
        images=images,
        own_normalization=True,
        freeze=("patches.*", "stages.*", "norms.*"),
        training=Training(
            epochs=100,
            batch_size=128,
            evaluate_epochs=1,
            keep_best="classification/accuracy",
            optimizer=PROBE,
        ),
        data="cifar-100-python",
        recipe="crossvit.cifar100_15",
    )
