"""CrossViT's recipe (Chen et al., ICCV 2021): image classification, its only task."""

from __future__ import annotations

from diptych.config.data import ImageSettings
from diptych.config.run import Finetune
from diptych.config.tasks import NoOptions
from diptych.config.training import Optimizer, Training
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
