"""ViLBERT's recipes (Lu et al., NeurIPS 2019, section 3.2; the official code)."""

from __future__ import annotations

from dataclasses import replace

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
from diptych.config.tasks import GroundingOptions, RetrievalOptions
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


def _downstream(batch: int, rate: float, metric: str, part_rates: tuple[str, ...] = ()) -> Training:
    """20 epochs, as the first release of the official code (2019) trains every downstream task: warm-up over a tenth of
    the run, then a constant rate, divided by 10 after epochs 12 and 16. The weights of the best epoch by the validation
    `metric` are kept.

    Differs: weight decay is applied to all weights but biases and norms, and in the official code to these alone; the
    best epoch is that of up to 512 validation samples, there of the whole split.
    """
    optimizer = Optimizer(
        learning_rate=rate,
        betas=(0.9, 0.999),
        weight_decay=0.01,
        warmup=0.1,
        schedule="drops",
        drops=(0.6, 0.8),
        part_rates=part_rates,
    )
    return Training(
        epochs=20.0,
        batch_size=batch,
        evaluate_epochs=1.0,
        keep_best=metric,
        checkpoint_every=1000,
        optimizer=optimizer,
    )


def vqa() -> Finetune:
    """VQA v2, 20 epochs of 256 questions (section 3.2, VQA), from a run of `pretrain`. The head's rate is 1e-4.

    Differs: the head has a norm before its GELU, not after it; trained on the train split only (the paper adds val);
    questions have up to `model.text_length` tokens (official code: 16); see also `_downstream`.
    """
    run = pretrain()
    training = _downstream(256, 4e-5, "vqa/score", part_rates=("head=2.5",))
    return replace(vqa_v2("vilbert.vqa", run, run.images, 256, 20, training.optimizer), training=training)


def refcoco() -> Finetune:
    """RefCOCO+, 20 epochs of 16 expressions (section 3.2, grounding referring expressions), from a run of `pretrain`.

    In training the true boxes of the image join the detector's; in evaluation they do not. `options.true_regions` is
    the file of the detector's features of the true boxes.

    Differs: all regions of the detector's file are read (official code: the first 100), and expressions have up to
    `model.text_length` tokens (official code: 20); see also `_downstream`.
    """
    run = pretrain()
    return Finetune(
        task="grounding",
        model=run.model,
        images=run.images,
        training=_downstream(16, 4e-5, "grounding/accuracy"),
        recipe="vilbert.refcoco",
        embedders=run.embedders,
        options=GroundingOptions(proposals="joined"),
    )


def retrieval() -> Finetune:
    """Flickr30k captions, 20 epochs of 64 (section 3.2, caption-based image retrieval), from a run of `pretrain`.

    Each pair is ranked against itself with a random text, with a random image, and with a hard negative: a caption of
    one of the 100 nearest images, as in the official code (the paper: "a hard negative").

    Differs: the nearest images are by the mean of the model's region features; the official code reads a published
    file. A negative text is no caption of the image in any of its rows, and a negative image has no such caption.
    Captions have up to `model.text_length` tokens (official code: 30); see also `_downstream`.
    """
    run = pretrain()
    return Finetune(
        task="retrieval",
        model=run.model,
        images=run.images,
        training=_downstream(64, 2e-5, "retrieval/accuracy"),
        recipe="vilbert.retrieval",
        embedders=run.embedders,
        options=RetrievalOptions(negative_texts=1, negative_images=1, hard_texts=1),
    )
