"""ALBEF's recipes (Li et al., NeurIPS 2021, section 3 and appendix; the official configurations)."""

from __future__ import annotations

from dataclasses import replace

from diptych.config.data import CLIP_MEAN, CLIP_STD, ImageSettings
from diptych.config.datasets import FOUR_MILLION, FOURTEEN_MILLION, epochs_to_steps
from diptych.config.objectives import ITC, ITM, MLM, HardNegatives, Objectives
from diptych.config.run import Finetune, Pretrain, Teacher
from diptych.config.tasks import VQAOptions
from diptych.config.training import Optimizer, Training
from diptych.models.albef.config import ALBEFConfig
from diptych.models.common_recipes import on_frozen_features, vqa_v2

OBJECTIVES = Objectives(itc=ITC(), itm=ITM(negatives=HardNegatives()), mlm=MLM(whole_words=False))
BATCH, EPOCHS = 512, 30


def pretrain_4m() -> Pretrain:
    """ITC, ITM and MLM with momentum distillation, 4 million images, 30 epochs of 512 pairs. To be initialised from
    DeiT-B/16 (`init_image_from`) and BERT-base (`init_text_from`: its layers 1-6 become the text encoder, 7-12 the
    multimodal encoder).

    Differs: the learning rate follows a cosine to 0 at every step (official code: to a tenth, once per epoch); images
    are resized to squares, not cropped; an image's other captions are positives too, in the batch and in the queue.
    """
    return Pretrain(
        recipe="albef.pretrain_4m",
        model=ALBEFConfig(),
        objectives=OBJECTIVES,
        images=ImageSettings(shorter_side=256, patch_size=16, square=True, augment=True, mean=CLIP_MEAN, std=CLIP_STD),
        training=Training(
            steps=epochs_to_steps(FOUR_MILLION, BATCH, EPOCHS),
            batch_size=BATCH,
            checkpoint_every=1000,
            optimizer=Optimizer(
                learning_rate=1e-4,
                betas=(0.9, 0.999),
                weight_decay=0.02,
                warmup=2000,
                schedule="cosine",
                max_grad_norm=0.0,
            ),
        ),
        teacher=Teacher(momentum=0.995, alpha=0.4, warmup=1 / EPOCHS, queue_size=65536),
        corpus=", ".join(FOUR_MILLION),
    )


def pretrain_14m() -> Pretrain:
    """ITC, ITM and MLM as in `pretrain_4m`, on 14 million images: CC12M is added."""
    run = pretrain_4m()
    training = replace(run.training, steps=epochs_to_steps(FOURTEEN_MILLION, BATCH, EPOCHS))
    return replace(run, recipe="albef.pretrain_14m", training=training, corpus=", ".join(FOURTEEN_MILLION))


def small() -> Pretrain:
    """ITC, ITM and MLM on frozen features: 240 steps of 256 pairs, 19 min on Flickr8k. Without a momentum teacher,
    whose queue is for corpora much larger than a batch.
    """
    model = ALBEFConfig(
        image_dim=256,
        image_depth=1,
        image_num_heads=4,
        image_mlp_dim=384,
        grid=(7, 7),
        patch_size=32,
        dim=256,
        text_depth=1,
        fusion_depth=2,
        num_heads=4,
        mlp_dim=384,
        text_length=40,
        dropout=0.0,
    )
    return on_frozen_features("albef.small", model, replace(OBJECTIVES, itm=ITM()), batch=256)


def vqa() -> Finetune:
    """VQA v2 at 384 pixels, 8 epochs of 256 questions (the official configuration), from a run of `pretrain_4m`.

    A decoder of six layers, initialised from the multimodal encoder, generates answers; a momentum teacher softens its
    targets with a weight that grows to 0.4 over the first epoch (section 5).

    Differs: a cosine schedule at every step; trained on the train split only, the paper adds val and Visual Genome.
    """
    optimizer = Optimizer(
        learning_rate=2e-5, betas=(0.9, 0.999), weight_decay=0.02, warmup=400, schedule="cosine", max_grad_norm=0.0
    )
    images = ImageSettings(shorter_side=384, patch_size=16, square=True, augment=True, mean=CLIP_MEAN, std=CLIP_STD)
    run = vqa_v2("albef.vqa", pretrain_4m(), images, 256, 8, optimizer)
    model = replace(run.model, decoder_depth=6)  # type: ignore[call-arg]  # an ALBEFConfig
    options = VQAOptions(min_answer_count=9, answers="open", momentum=0.995, alpha=0.4, alpha_warmup=1 / 8)
    return replace(run, model=model, options=options)


def retrieval() -> Pretrain:
    """ITC and ITM with a momentum teacher on COCO captions at 384 pixels, 5 epochs of 256 pairs (section 5 and the
    official configuration). To be initialised from a run of `pretrain_4m` (`init_from`).
    """
    run = pretrain_4m()
    optimizer = replace(run.training.optimizer, learning_rate=1e-5, warmup=100)
    return replace(
        run,
        recipe="albef.retrieval",
        model=replace(run.model, grid=(24, 24)),
        objectives=replace(OBJECTIVES, mlm=None),
        images=replace(run.images, shorter_side=384),
        training=replace(run.training, steps=epochs_to_steps(("COCO",), 256, 5), batch_size=256, optimizer=optimizer),
        teacher=replace(run.teacher, warmup=1 / 5),
        corpus="COCO",
    )
