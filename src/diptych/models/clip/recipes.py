"""CLIP's recipes (Radford et al., ICML 2021, section 2.5 and appendix F)."""

from __future__ import annotations

from diptych.config.data import CLIP_MEAN, CLIP_STD, ImageSettings
from diptych.config.datasets import epochs_to_steps
from diptych.config.objectives import ITC, Objectives
from diptych.config.run import Finetune, Pretrain
from diptych.config.tasks import NoOptions
from diptych.config.training import Optimizer, Training
from diptych.models.clip.config import CLIPConfig
from diptych.models.common_recipes import on_frozen_features


def base() -> Pretrain:
    """ITC with ViT-B/32 from scratch, 32 epochs of 32,768 pairs at 224 pixels.

    Differs: BERT's vocabulary, not CLIP's; images are resized to squares (the paper takes random square crops).
    """
    return Pretrain(
        recipe="clip.base",
        model=CLIPConfig(vocab_size=30522),
        objectives=Objectives(itc=ITC()),
        images=ImageSettings(shorter_side=224, patch_size=32, square=True, mean=CLIP_MEAN, std=CLIP_STD),
        training=Training(
            steps=epochs_to_steps(("WIT",), 32768, 32),
            batch_size=32768,
            checkpoint_every=1000,
            optimizer=Optimizer(
                learning_rate=5e-4,
                betas=(0.9, 0.98),
                eps=1e-6,
                weight_decay=0.2,
                warmup=2000,
                schedule="cosine",
                max_grad_norm=0.0,
            ),
        ),
        corpus="WIT, 400 million pairs (not released)",
    )


def small() -> Pretrain:
    """ITC on frozen features: 300 steps of 256 pairs, 5 min on Flickr8k."""
    model = CLIPConfig(
        dim=256,
        depth=1,
        num_heads=4,
        mlp_dim=512,
        grid=(7, 7),
        text_dim=256,
        text_depth=1,
        text_num_heads=4,
        text_mlp_dim=512,
        vocab_size=30522,
        text_length=40,
        embed_dim=256,
        activation="gelu",
    )
    return on_frozen_features("clip.small", model, Objectives(itc=ITC()), steps=300, batch=256)


def cifar100_probe() -> Finetune:
    """Linear probe of CIFAR-100 on a frozen ViT-B/32 (section 3.2): a classifier of the image tower's class token
    before the projection to the joint space; `init_from` is an imported CLIP.

    Differs: the paper fits logistic regression by L-BFGS, with the regularisation chosen on a validation split; here it
    is AdamW for 20 epochs of 128 images, without weight decay.
    """
    run = base()
    return Finetune(
        task="classification",
        options=NoOptions(),
        recipe="clip.cifar100_probe",
        model=run.model,
        images=run.images,
        freeze=("*",),
        training=Training(
            epochs=20,
            batch_size=128,
            optimizer=Optimizer(learning_rate=1e-3, weight_decay=0.0, warmup=0.05, schedule="cosine"),
        ),
        data="cifar-100-python",
    )
