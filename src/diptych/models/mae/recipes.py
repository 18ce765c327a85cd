"""MAE's recipes (He et al., CVPR 2022, section 4 and table 8)."""

from __future__ import annotations

from dataclasses import replace

from diptych.config.data import IMAGENET_MEAN, IMAGENET_STD, ImageSettings
from diptych.config.datasets import IMAGENET_IMAGES
from diptych.config.objectives import MIM, Objectives
from diptych.config.run import Finetune, Pretrain
from diptych.config.tasks import NoOptions
from diptych.config.training import Optimizer, Training
from diptych.models.configs import MAEConfig, image_encoder_of


def base() -> Pretrain:
    """Masked autoencoding with ViT-B/16: ImageNet-1k, 800 epochs of 4,096 images, 75 % of the patches masked.

    Differs: images are resized to squares (the paper takes random crops and flips).
    """
    return Pretrain(
        recipe="mae.base",
        model=MAEConfig(),
        objectives=Objectives(mim=MIM()),
        images=ImageSettings(shorter_side=224, patch_size=16, square=True, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        training=Training(
            steps=round(IMAGENET_IMAGES * 800 / 4096),
            batch_size=4096,
            checkpoint_every=1000,
            optimizer=Optimizer(
                learning_rate=2.4e-3,
                betas=(0.9, 0.95),
                weight_decay=0.05,
                warmup=0.05,
                schedule="cosine",
                max_grad_norm=0.0,
            ),
        ),
        corpus="ImageNet-1k, images only",
    )


def small() -> Pretrain:
    """Masked autoencoding of images of 96 pixels in patches of 16: 800 steps of 128."""
    model = MAEConfig(
        dim=256,
        depth=4,
        num_heads=4,
        mlp_dim=512,
        grid=(6, 6),
        decoder_dim=128,
        decoder_depth=2,
        decoder_num_heads=4,
        decoder_mlp_dim=256,
    )
    return Pretrain(
        recipe="mae.small",
        model=model,
        objectives=Objectives(mim=MIM()),
        images=ImageSettings(shorter_side=96, patch_size=16, square=True),
        training=Training(
            steps=800,
            batch_size=128,
            optimizer=Optimizer(
                learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.05, warmup=0.1, schedule="cosine"
            ),
        ),
    )


def small_cifar100() -> Finetune:
    """Fine-tuning of `mae.small`'s encoder, a ViT that averages its patches, for CIFAR-100: 300 steps of 64 images.

    With ``--freeze patches.* blocks.* norm.*`` a linear probe. Source: section 4 and appendix A.1 of the paper: AdamW,
    random crops and flips, layer-wise decay. Differs: no mixup, cutmix, label smoothing, nor stochastic depth.
    """
    run = small()
    optimizer = Optimizer(
        learning_rate=1e-3, betas=(0.9, 0.999), weight_decay=0.05, warmup=0.1, schedule="cosine", layer_decay=0.75
    )
    return Finetune(
        task="classification",
        options=NoOptions(),
        recipe="mae.small_cifar100",
        model=image_encoder_of(run.model),
        images=replace(run.images, random_crop=0.4),
        training=Training(steps=300, batch_size=64, optimizer=optimizer),
        data="cifar-100-python",
    )
