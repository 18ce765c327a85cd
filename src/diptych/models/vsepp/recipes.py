"""VSE++'s recipes (Faghri et al., BMVC 2018, section 4; the official code's options)."""

from __future__ import annotations

from dataclasses import replace

from diptych.config.data import Embedders, ImageSettings
from diptych.config.datasets import epochs_to_steps
from diptych.config.objectives import Objectives, Triplet
from diptych.config.run import Pretrain
from diptych.config.training import Optimizer, Training
from diptych.models.common_recipes import CNN_FEATURE_DIM, on_frozen_features
from diptych.models.vsepp.config import VSEppConfig


def flickr30k() -> Pretrain:
    """Triplet loss with hardest negatives, a GRU on texts and features of a frozen CNN: 30 epochs of 128 pairs of
    Flickr30k. `embedders.image` is the folder of features, 4,096 numbers per image.

    Differs: the learning rate falls linearly (official code: to a tenth after 15 epochs); BERT's subword vocabulary
    (official code: a list of words; to use it, --vocabulary FILE --model.vocab_size N); the loss is a mean over pairs,
    so gradients are clipped at a norm of 2 / 128.
    """
    return Pretrain(
        recipe="vsepp.flickr30k",
        model=VSEppConfig(feature_dim=4096, vocab_size=30522),
        objectives=Objectives(triplet=Triplet()),
        images=ImageSettings(shorter_side=224, square=True),
        embedders=Embedders(image="features/", feature_dim=4096),
        training=Training(
            steps=epochs_to_steps(("Flickr30k",), 128, 30),
            batch_size=128,
            optimizer=Optimizer(
                learning_rate=2e-4, betas=(0.9, 0.999), weight_decay=0.0, warmup=0.0, max_grad_norm=2 / 128
            ),
        ),
        corpus="Flickr30k",
    )


def coco() -> Pretrain:
    """Triplet loss with hardest negatives on COCO: 30 epochs of 128 pairs."""
    run = flickr30k()
    training = replace(run.training, steps=epochs_to_steps(("COCO",), 128, 30))
    return replace(run, recipe="vsepp.coco", training=training, corpus="COCO")


def small() -> Pretrain:
    """Triplet loss over all negatives on frozen features: 900 steps of 128 pairs, 9 min on Flickr8k. With hardest
    negatives only, embeddings collapse from random weights on a small batch.
    """
    model = VSEppConfig(feature_dim=CNN_FEATURE_DIM, dim=512, vocab_size=30522, word_dim=256)
    return on_frozen_features("vsepp.small", model, Objectives(triplet=Triplet(hardest_only=False)), steps=900)
