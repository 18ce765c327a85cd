"""VisualBERT's recipes (Li et al., 2019, section 3.3)."""

from __future__ import annotations

from diptych.config.data import Embedders, ImageSettings
from diptych.config.datasets import epochs_to_steps
from diptych.config.objectives import ITM, MLM, Objectives
from diptych.config.run import Finetune, Pretrain
from diptych.config.training import Optimizer, Training
from diptych.models.common_recipes import CNN_FEATURE_DIM, INIT_SCALE, on_frozen_features, vqa_v2
from diptych.models.visualbert.config import VisualBERTConfig

OBJECTIVES = Objectives(itm=ITM(), mlm=MLM(whole_words=False))


def pretrain() -> Pretrain:
    """Task-agnostic pre-training on COCO: MLM and sentence-image prediction, 10 epochs. To be initialised from
    BERT-base (`init_text_from`). Learning rate and batch size are quoted from memory of the paper.

    Differs: one caption per sample; the paper has two, of which one may be another image's.
    """
    return Pretrain(
        recipe="visualbert.pretrain",
        model=VisualBERTConfig(),
        objectives=OBJECTIVES,
        images=ImageSettings(shorter_side=224, square=True),
        embedders=Embedders(image="regions/", feature_dim=2048),
        training=Training(
            steps=epochs_to_steps(("COCO",), 48, 10),
            batch_size=48,
            checkpoint_every=1000,
            optimizer=Optimizer(learning_rate=5e-5, betas=(0.9, 0.999), weight_decay=0.01, warmup=0.1),
        ),
        corpus="COCO",
    )


def small() -> Pretrain:
    """MLM and sentence-image prediction on frozen features: 240 steps of 128 pairs."""
    model = VisualBERTConfig(
        dim=192, depth=3, num_heads=4, mlp_dim=384, feature_dim=CNN_FEATURE_DIM, text_length=40, dropout=0.0
    )
    return on_frozen_features("visualbert.small", model, OBJECTIVES, init_scale=INIT_SCALE)


def vqa() -> Finetune:
    """VQA v2, 10 epochs of 64 questions, from a run of `pretrain`. Learning rate, batch size and epochs are quoted from
    memory of the paper.

    Differs: the pooled token is [CLS]; the paper appends a [MASK] to the question and pools that. Trained on the train
    split only; the paper adds val.
    """
    optimizer = Optimizer(learning_rate=2e-5, betas=(0.9, 0.999), weight_decay=0.01, warmup=0.1)
    return vqa_v2("visualbert.vqa", pretrain(), pretrain().images, 64, 10, optimizer)
