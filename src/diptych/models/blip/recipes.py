"""BLIP's recipes (Li et al., ICML 2022, section 4.1; the official configuration)."""

from __future__ import annotations

from dataclasses import replace

from diptych.config.data import CLIP_MEAN, CLIP_STD, ImageSettings
from diptych.config.datasets import FOURTEEN_MILLION, epochs_to_steps
from diptych.config.objectives import ITC, ITM, LM, HardNegatives, Objectives
from diptych.config.run import Finetune, Pretrain, Teacher
from diptych.config.tasks import VQAOptions
from diptych.config.training import Optimizer, Training
from diptych.models.blip.config import BLIPConfig
from diptych.models.common_recipes import CONTRASTIVE_INIT_SCALE, on_frozen_features, vqa_v2

OBJECTIVES = Objectives(itc=ITC(), itm=ITM(negatives=HardNegatives(uniform_mix=1e-4)), lm=LM(label_smoothing=0.1))
EPOCHS = 20


def pretrain_14m() -> Pretrain:
    """ITC, ITM and LM with ViT-B/16, 14 million images, 20 epochs of 2,880 pairs. To be initialised from DeiT-B/16
    (`init_image_from`) and BERT-base (`init_text_from`).

    Differs: a cosine schedule (official code: the learning rate falls by a tenth each epoch); images are resized to
    squares, not cropped; biases, norms and scalars have no weight decay; an image's other captions are positives too,
    in the batch and in the queue.
    """
    return Pretrain(
        recipe="blip.pretrain_14m",
        model=BLIPConfig(),
        objectives=OBJECTIVES,
        images=ImageSettings(shorter_side=224, patch_size=16, square=True, augment=True, mean=CLIP_MEAN, std=CLIP_STD),
        training=Training(
            steps=epochs_to_steps(FOURTEEN_MILLION, 2880, EPOCHS),
            batch_size=2880,
            checkpoint_every=1000,
            optimizer=Optimizer(
                learning_rate=3e-4,
                betas=(0.9, 0.999),
                weight_decay=0.05,
                warmup=3000,
                schedule="cosine",
                max_grad_norm=0.0,
            ),
        ),
        teacher=Teacher(momentum=0.995, alpha=0.4, warmup=2 / EPOCHS, queue_size=57600),
        corpus=", ".join(FOURTEEN_MILLION),
    )


def pretrain_129m() -> Pretrain:
    """ITC, ITM and LM as in `pretrain_14m`, on 129 million images: with 115 million pairs of LAION (section 4.1)."""
    run, corpora = pretrain_14m(), (*FOURTEEN_MILLION, "LAION115M")
    training = replace(run.training, steps=epochs_to_steps(corpora, run.training.batch_size, EPOCHS))
    return replace(run, recipe="blip.pretrain_129m", training=training, corpus=", ".join(corpora))


def pretrain_large() -> Pretrain:
    """ITC, ITM and LM with ViT-L/16, on 129 million images, 20 epochs of 2,400 pairs."""
    run = pretrain_129m()
    model = BLIPConfig(image_dim=1024, image_depth=24, image_num_heads=16, image_mlp_dim=4096)
    optimizer = replace(run.training.optimizer, learning_rate=2e-4)
    corpora = (*FOURTEEN_MILLION, "LAION115M")
    training = replace(run.training, steps=epochs_to_steps(corpora, 2400, EPOCHS), batch_size=2400, optimizer=optimizer)
    return replace(run, recipe="blip.pretrain_large", model=model, training=training)


def small() -> Pretrain:
    """ITC, ITM and LM on frozen features: 150 steps of 256 pairs, 15 min on Flickr8k. The decoder has word embeddings
    of its own: MiniLM's bidirectional features would leak the tokens to be predicted. [DEC] and [ENC] replace two
    unused tokens of BERT's vocabulary.
    """
    model = BLIPConfig(
        image_dim=192,
        image_depth=1,
        image_num_heads=4,
        image_mlp_dim=384,
        grid=(7, 7),
        patch_size=32,
        dim=192,
        depth=2,
        num_heads=4,
        mlp_dim=384,
        vocab_size=30522,
        bos_token_id=1,
        enc_token_id=2,
        text_length=40,
        dropout=0.0,
    )
    return on_frozen_features(
        "blip.small",
        model,
        replace(OBJECTIVES, itm=ITM()),
        steps=150,
        batch=256,
        init_scale=CONTRASTIVE_INIT_SCALE,
    )


def vqa() -> Finetune:
    """VQA v2 at 480 pixels, 10 epochs of 256 questions (the official configuration), from a run of `pretrain_14m`.

    A decoder that cross-attends to the encoded question generates answers; it is initialised from the text decoder of
    pre-training (section 5.3).

    Differs: a cosine schedule at every step; trained on the train split only, the paper adds val and Visual Genome.
    """
    optimizer = Optimizer(
        learning_rate=2e-5, betas=(0.9, 0.999), weight_decay=0.05, warmup=0.0, schedule="cosine", max_grad_norm=0.0
    )
    images = ImageSettings(shorter_side=480, patch_size=16, square=True, augment=True, mean=CLIP_MEAN, std=CLIP_STD)
    run = vqa_v2("blip.vqa", pretrain_14m(), images, 256, 10, optimizer)
    model = replace(run.model, variant="vqa")  # type: ignore[call-arg]  # a BLIPConfig
    return replace(run, model=model, options=VQAOptions(min_answer_count=9, answers="open"))


def retrieval() -> Pretrain:
    """ITC and ITM with a momentum teacher on COCO captions at 384 pixels, 6 epochs of 256 pairs (the official
    configuration). To be initialised from a run of `pretrain_14m` (`init_from`).
    """
    run = pretrain_14m()
    optimizer = replace(run.training.optimizer, learning_rate=1e-5, warmup=0.0)
    return replace(
        run,
        recipe="blip.retrieval",
        model=replace(run.model, grid=(24, 24)),
        objectives=Objectives(itc=ITC(), itm=ITM(negatives=HardNegatives())),
        images=replace(run.images, shorter_side=384),
        training=replace(run.training, steps=epochs_to_steps(("COCO",), 256, 6), batch_size=256, optimizer=optimizer),
        teacher=replace(run.teacher, warmup=1 / 6),
        corpus="COCO",
    )
