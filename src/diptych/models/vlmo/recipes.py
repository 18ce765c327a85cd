"""VLMo's recipes: the stages of the published models, and some that fit a small machine."""

from __future__ import annotations

from dataclasses import replace

from diptych.config.data import ImageSettings
from diptych.config.datasets import IMAGENET_22K_IMAGES
from diptych.config.objectives import (
    ITC,
    ITM,
    MLM,
    BlockMasking,
    HardNegatives,
    MaskedCodesImageOnly,
    NoImage,
    Objectives,
)
from diptych.config.run import Finetune, Pretrain
from diptych.config.training import Optimizer, Training
from diptych.models.common_recipes import CONTRASTIVE_INIT_SCALE, on_frozen_features, on_images, vqa_v2
from diptych.models.vilt import recipes as vilt
from diptych.models.vlmo.config import VLMoConfig

FROZEN_FOR_IMAGES = ("words", "transformer.blocks.*.modality_ffn.text", "transformer.pooler")
"""Parameters that training on images only does not use."""

FROZEN_FOR_TEXT = (
    "patches",
    "transformer.blocks.*.norm",
    "transformer.blocks.*.attention",
    "transformer.blocks.*.modality_ffn.image",
)
LAYER_SCALE = ("transformer.blocks.*.add_attended", "transformer.blocks.*.add_fed")
"""Frozen in the text stage too (the official run.py)."""

SMALL = VLMoConfig(
    dim=192,
    depth=3,
    num_heads=4,
    mlp_dim=384,
    vl_start_layer=2,
    grid=(7, 7),
    patch_size=32,
    text_length=40,
    relative_position=False,
    layer_scale=0.0,
    drop_path=0.0,
)


def base() -> Pretrain:
    """VLMo-Base's third stage (Bao et al. 2022, section 3.3; the official configuration): ITC, ITM with hard negatives
    and MLM on pairs. To be initialised from a run of `base_text`.
    """
    return Pretrain(
        recipe="vlmo.base",
        model=VLMoConfig(),
        objectives=Objectives(itc=ITC(), itm=ITM(negatives=HardNegatives()), mlm=MLM(weight=0.25)),
        images=ImageSettings(shorter_side=224, patch_size=16, square=True, augment=True),
        training=Training(
            steps=200_000,
            batch_size=1024,
            checkpoint_every=1000,
            optimizer=Optimizer(learning_rate=2e-4, weight_decay=0.01, warmup=0.1),
        ),
    )


def tiny() -> Pretrain:
    """ITC, ITM and MLM for the built-in synthetic scenes: 1,500 steps of 64 pairs at 80 pixels, minutes on two cores.
    Random negatives; half of the tokens are masked.

    ITM needs ITC here: with ITC the ITM loss falls below chance within 300 steps; a ViLT of the same size, without ITC,
    was still at chance after 1,300 (align before fuse: Li et al., NeurIPS 2021).
    """
    run = vilt.tiny()
    model = VLMoConfig(
        dim=128,
        depth=4,
        num_heads=4,
        mlp_dim=512,
        vl_start_layer=3,
        patch_size=16,
        grid=(5, 7),
        vocab_size=114,
        text_length=40,
        relative_position=False,
        layer_scale=0.0,
        num_itc_branches=1,
        drop_path=0.0,
    )
    objectives = replace(run.objectives, itc=ITC(), wpa=None)
    return replace(run, recipe="vlmo.tiny", model=model, objectives=objectives, init_scale=4.0)


def base_images() -> Pretrain:
    """First stage, on images only: prediction of the visual tokens of masked patches (section 3.3, which follows BEiT:
    Bao et al., ICLR 2022, section 2.3), 150 epochs of ImageNet-22k with 75 of 196 patches masked (BEiT's official
    settings for the checkpoint that VLMo's official code starts from). `visual_tokenizer` is the folder of a run of
    `beit3.visual_tokenizer`.

    Differs: BEiT uses DALL-E's visual tokenizer; the checkpoint of the official code was also fine-tuned on ImageNet's
    labels. Each layer has its own relative positions, without weight decay (in BEiT all layers share them until
    fine-tuning); images have VLMo's type embedding. RandAugment instead of crops and colour jitter; the learning rate
    ends at 0, not at 1e-5.
    """
    run = base()
    optimizer = Optimizer(learning_rate=1.5e-3, weight_decay=0.05, warmup=10_000, schedule="cosine", max_grad_norm=3.0)
    training = replace(
        run.training, steps=round(IMAGENET_22K_IMAGES * 150 / 2048), batch_size=2048, optimizer=optimizer
    )
    return replace(
        run,
        recipe="vlmo.base_images",
        model=replace(run.model, vl_start_layer=12, with_mask_token=True),
        objectives=Objectives(masked_codes_image_only=MaskedCodesImageOnly(patches=BlockMasking(rate=75 / 196))),
        training=training,
        heads=(),
        freeze=FROZEN_FOR_IMAGES,
        corpus="ImageNet-22k, images only",
    )


def base_text() -> Pretrain:
    """Second stage, before training on pairs: MLM on texts only (section 3.3, "text-only"). To be initialised from a
    run of `base_images` (`init_from`); without one, `init_image_from` may name a ViT's run, for models without
    relative positions (base-plus). It trains the word embeddings and the text experts; attention, LayerScale and the
    image experts are frozen, as in the official code.
    """
    run = base()
    return replace(
        run,
        recipe="vlmo.base_text",
        model=replace(run.model, vl_start_layer=12),
        objectives=Objectives(mlm=MLM(image=NoImage())),
        freeze=FROZEN_FOR_TEXT + LAYER_SCALE,
        corpus="Wikipedia, BookCorpus: texts only",
    )


def small() -> Pretrain:
    """Third stage only (ITC, ITM and MLM) on frozen features: 240 steps of 256 pairs, 22 min on Flickr8k."""
    return on_frozen_features(
        "vlmo.small",
        SMALL,
        replace(base().objectives, itm=ITM()),
        batch=256,
        init_scale=CONTRASTIVE_INIT_SCALE,
    )


def small_images() -> Pretrain:
    """First stage (visual tokens of masked patches): 240 steps of 64 images of 224 pixels. `visual_tokenizer` is the
    folder of a run of `beit3.small_visual_tokenizer`.

    `small_text` and `small` train on frozen features, which have no patches to mask: to be initialised from this stage
    they need `--embedders.image own --embedders.text own`.
    """
    stage = base_images()
    patches = BlockMasking(rate=75 / 196, min_block=4)
    objectives = Objectives(masked_codes_image_only=MaskedCodesImageOnly(patches=patches, codebook_size=256))
    model = replace(SMALL, vl_start_layer=SMALL.depth, with_mask_token=True)
    run = on_images("vlmo.small_images", model, objectives, init_scale=CONTRASTIVE_INIT_SCALE)
    return replace(run, heads=(), freeze=stage.freeze)


def small_text() -> Pretrain:
    """Second stage: MLM on the captions only, on frozen features, 240 steps of 128 captions."""
    run = on_frozen_features(
        "vlmo.small_text",
        replace(SMALL, vl_start_layer=SMALL.depth),
        base_text().objectives,
        init_scale=CONTRASTIVE_INIT_SCALE,
    )
    return replace(run, freeze=FROZEN_FOR_TEXT)


def base_plus() -> Pretrain:
    """VLMo-Base+, third stage: narrower and deeper, with positions added to the embeddings and no LayerScale."""
    run = base()
    model = VLMoConfig(
        dim=544,
        depth=24,
        num_heads=16,
        mlp_dim=2176,
        vl_start_layer=21,
        text_length=40,
        relative_position=False,
        layer_scale=0.0,
    )
    optimizer = replace(run.training.optimizer, learning_rate=1e-4)
    return replace(run, recipe="vlmo.base_plus", model=model, training=replace(run.training, optimizer=optimizer))


def large() -> Pretrain:
    """VLMo-Large, third stage: ITC, ITM with hard negatives and MLM, 200,000 steps of 1,024 pairs."""
    run = base()
    model = VLMoConfig(dim=1024, depth=24, num_heads=16, mlp_dim=4096, vl_start_layer=21)
    optimizer = replace(run.training.optimizer, learning_rate=5e-5)
    return replace(run, recipe="vlmo.large", model=model, training=replace(run.training, optimizer=optimizer))


def vqa() -> Finetune:
    """VQA v2 at 480 pixels, 10 epochs of 128 questions (the official configuration), from a run of `base`.

    Differs: trained on the train split only (the paper adds val); stochastic depth 0.1, as in pre-training
    (paper: 0.15).
    """
    optimizer = Optimizer(learning_rate=3e-5, weight_decay=0.01, warmup=0.1, part_rates=("head=20",))
    images = ImageSettings(shorter_side=480, patch_size=16, square=True, augment=True)
    return vqa_v2("vlmo.vqa", base(), images, 128, 10, optimizer)


def retrieval() -> Pretrain:
    """ITC only, without fusion, on COCO captions at 384 pixels: 3,000 steps of 3,072 pairs (the official
    configuration). To be initialised from a run of `base` (`init_from`).
    """
    run = base()
    optimizer = replace(run.training.optimizer, learning_rate=3e-5, warmup=300)
    return replace(
        run,
        recipe="vlmo.retrieval",
        model=replace(run.model, grid=(24, 24), drop_path=0.2),
        objectives=Objectives(itc=ITC()),
        images=replace(run.images, shorter_side=384),
        training=replace(run.training, steps=3000, batch_size=3072, optimizer=optimizer),
        corpus="COCO",
    )
