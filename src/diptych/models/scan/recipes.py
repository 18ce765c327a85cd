"""SCAN's recipes (Lee et al., ECCV 2018, section 4; the official README)."""

from __future__ import annotations

from dataclasses import replace

from diptych.config.data import Embedders, ImageSettings
from diptych.config.datasets import epochs_to_steps
from diptych.config.objectives import Objectives, Triplet
from diptych.config.run import Pretrain
from diptych.config.training import Optimizer, Training
from diptych.models.common_recipes import CNN_FEATURE_DIM, on_frozen_features
from diptych.models.scan.config import SCANConfig


def flickr30k() -> Pretrain:
    """Triplet loss, text-to-image attention with LogSumExp pooling: 36 regions of bottom-up attention, 30 epochs of 128
    pairs of Flickr30k. `embedders.image` is the folder or table of regions.

    Differs: as vsepp.flickr30k.
    """
    return Pretrain(
        recipe="scan.flickr30k",
        model=SCANConfig(vocab_size=30522),
        objectives=Objectives(triplet=Triplet()),
        images=ImageSettings(shorter_side=224, square=True),
        embedders=Embedders(image="regions/", feature_dim=2048),
        training=Training(
            steps=epochs_to_steps(("Flickr30k",), 128, 30),
            batch_size=128,
            optimizer=Optimizer(
                learning_rate=2e-4, betas=(0.9, 0.999), weight_decay=0.0, warmup=0.0, max_grad_norm=2 / 128
            ),
        ),
        corpus="Flickr30k",
    )


def flickr30k_image_text() -> Pretrain:
    """Triplet loss, image-to-text attention with LogSumExp pooling: the second of the two models whose similarities the
    paper averages.
    """
    run = flickr30k()
    return replace(
        run,
        recipe="scan.flickr30k_image_text",
        model=SCANConfig(vocab_size=30522, direction="image", lambda_softmax=4.0, lambda_lse=5.0),
    )


def coco() -> Pretrain:
    """Triplet loss, text-to-image attention on COCO: 20 epochs of 128 pairs at a learning rate of 5e-4."""
    run = flickr30k()
    training = replace(
        run.training,
        steps=epochs_to_steps(("COCO",), 128, 20),
        optimizer=replace(run.training.optimizer, learning_rate=5e-4),
    )
    return replace(run, recipe="scan.coco", training=training, corpus="COCO")


def small() -> Pretrain:
    """Triplet loss over all negatives (as in vsepp.small) on frozen features, text-to-image attention with average
    pooling, the paper's alternative to LogSumExp: 600 steps of 128 pairs, 12 min on Flickr8k.
    """
    model = SCANConfig(feature_dim=CNN_FEATURE_DIM, dim=256, vocab_size=30522, word_dim=256, aggregate="mean")
    return on_frozen_features("scan.small", model, Objectives(triplet=Triplet(hardest_only=False)), steps=600)
