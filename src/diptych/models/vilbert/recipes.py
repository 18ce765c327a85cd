"""ViLBERT's recipes (Lu et al., NeurIPS 2019, section 3.2; the official code)."""

from __future__ import annotations

from diptych.config.data import Embedders, ImageSettings
from diptych.config.datasets import epochs_to_steps
from diptych.config.objectives import (
    ITM,
    MLM,
    MaskedRegions,
    Objectives,
    RandomNegatives,
    RegionMasking,
    WordRegionMasking,
)
from diptych.config.run import Finetune, Pretrain
from diptych.config.tasks import RetrievalOptions
from diptych.config.training import Optimizer, Training
from diptych.models.common_recipes import CNN_FEATURE_DIM, INIT_SCALE, NUM_CNN_CLASSES, on_frozen_features, vqa_v2
from diptych.models.vilbert.config import ViLBERTConfig

MASKING = WordRegionMasking(whole_words=False)
OBJECTIVES = Objectives(
    itm=ITM(negatives=RandomNegatives(masking=MASKING)),
    mlm=MLM(whole_words=False, image=RegionMasking()),
    masked_regions=MaskedRegions(masking=MASKING),
)
"""All three losses of one encoding of a pair, with masked words and regions."""


def pretrain() -> Pretrain:
    """MLM, masked regions and ITM on Conceptual Captions, 10 epochs of 512 pairs. `embedders.image` is the file of the
    detector's regions, with its class probabilities. To be initialised from BERT-base (`init_text_from`).

    Differs: all weights have one learning rate (official code: a tenth for BERT's); masked words and regions are
    predicted for mismatched pairs too, as in the paper (an option of the official code).
    """
    return Pretrain(
        recipe="vilbert.pretrain",
        model=ViLBERTConfig(),
        objectives=OBJECTIVES,
        images=ImageSettings(shorter_side=224, square=True),
        embedders=Embedders(image="regions/", feature_dim=2048),
        training=Training(
            steps=epochs_to_steps(("CC3M",), 512, 10),
            batch_size=512,
            checkpoint_every=1000,
            optimizer=Optimizer(learning_rate=1e-4, betas=(0.9, 0.98), weight_decay=0.01, warmup=0.1),
        ),
        corpus="CC3M",
    )


def small() -> Pretrain:
    """MLM, masked regions and ITM on frozen features: 240 steps of 128 pairs. The CNN's class probabilities of each box
    replace the detector's.
    """
    model = ViLBERTConfig(
        dim=192,
        depth=2,
        num_heads=4,
        mlp_dim=384,
        image_dim=192,
        image_depth=1,
        image_num_heads=4,
        image_mlp_dim=384,
        coattention_dim=192,
        coattention_num_heads=4,
        schedule=((1, 0), (2, 1)),
        feature_dim=CNN_FEATURE_DIM,
        num_region_targets=NUM_CNN_CLASSES,
        text_length=40,
        dropout=0.0,
    )
    return on_frozen_features("vilbert.small", model, OBJECTIVES, init_scale=INIT_SCALE)


def vqa() -> Finetune:
    """VQA v2, 20 epochs of 256 questions (section 3.2, VQA), from a run of `pretrain`.

    Differs: the head has a norm before its GELU, not after it; trained on the train split only (the paper adds val).
    """
    optimizer = Optimizer(learning_rate=4e-5, betas=(0.9, 0.999), weight_decay=0.01, warmup=0.1)
    return vqa_v2("vilbert.vqa", pretrain(), pretrain().images, 256, 20, optimizer)


def retrieval() -> Finetune:
    """Flickr30k captions, 20 epochs of 64 (section 3.2, caption-based image retrieval), from a run of `pretrain`.

    Each pair is ranked against itself with a random text, with a random image, and with a hard negative: a caption of
    one of the 100 nearest images, as in the official code (the paper: "a hard negative").

    Differs: the nearest images are by the mean of the model's region features; the official code reads a published
    file. A negative text is no caption of the image in any of its rows, and a negative image has no such caption.
    """
    run = pretrain()
    optimizer = Optimizer(learning_rate=2e-5, betas=(0.9, 0.999), weight_decay=0.01, warmup=0.1)
    training = Training(
        steps=epochs_to_steps(("Flickr30k",), 64, 20), batch_size=64, checkpoint_every=1000, optimizer=optimizer
    )
    return Finetune(
        task="retrieval",
        model=run.model,
        images=run.images,
        training=training,
        recipe="vilbert.retrieval",
        embedders=run.embedders,
        options=RetrievalOptions(negative_texts=1, negative_images=1, hard_texts=1),
    )
