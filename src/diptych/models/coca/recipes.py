"""CoCa's recipes (Yu et al., TMLR 2022, section 4.1)."""

from __future__ import annotations

from diptych.config.data import CLIP_MEAN, CLIP_STD, ImageSettings
from diptych.config.objectives import ITC, LM, Objectives
from diptych.config.run import Pretrain
from diptych.config.training import Optimizer, Training
from diptych.models.coca.config import CoCaConfig
from diptych.models.common_recipes import on_frozen_features

OBJECTIVES = Objectives(itc=ITC(), lm=LM(weight=2.0))


def base() -> Pretrain:
    """CoCa-Base from scratch: ITC, and LM with twice its weight, 500,000 steps of 65,536 pairs at 288 pixels.

    Differs: AdamW instead of Adafactor; BERT's vocabulary (the paper trains one on its corpus).
    """
    return Pretrain(
        recipe="coca.base",
        model=CoCaConfig(
            patch_size=18,
            grid=(16, 16),
            text_dim=768,
            text_num_heads=12,
            text_mlp_dim=3072,
            decoder_num_heads=12,
            decoder_mlp_dim=3072,
            pool_num_heads=12,
            vocab_size=30522,
            text_length=64,
            embed_dim=768,
        ),
        objectives=OBJECTIVES,
        images=ImageSettings(shorter_side=288, patch_size=18, square=True),
        training=Training(
            steps=500_000,
            batch_size=65536,
            checkpoint_every=1000,
            optimizer=Optimizer(learning_rate=8e-4, betas=(0.9, 0.999), weight_decay=0.01, warmup=0.02),
        ),
        corpus="JFT-3B, ALIGN (neither was released)",
    )


def open_clip() -> Pretrain:
    """open_clip's coca_ViT-B-32, whose weights are released: ITC and LM on LAION-2B, 13 billion samples.

    Differs: BERT's vocabulary, not CLIP's.
    """
    return Pretrain(
        recipe="coca.open_clip",
        model=CoCaConfig(vocab_size=30522),
        objectives=OBJECTIVES,
        images=ImageSettings(shorter_side=224, patch_size=32, square=True, mean=CLIP_MEAN, std=CLIP_STD),
        training=Training(
            steps=round(13e9 / 90_000),
            batch_size=90_000,
            checkpoint_every=1000,
            optimizer=Optimizer(
                learning_rate=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, warmup=2000, schedule="cosine"
            ),
        ),
        corpus="LAION-2B",
    )


def small() -> Pretrain:
    """ITC and LM on frozen features: 240 steps of 256 pairs, 18 min on Flickr8k. MiniLM has a causal mask:
    bidirectional features would leak the tokens that the captioner predicts (docs/decisions/0009).
    """
    model = CoCaConfig(
        dim=192,
        depth=1,
        num_heads=4,
        mlp_dim=384,
        grid=(7, 7),
        num_queries=9,
        pool_num_heads=4,
        text_dim=192,
        text_depth=2,
        text_num_heads=4,
        text_mlp_dim=384,
        vocab_size=30522,
        text_length=40,
        decoder_depth=2,
        decoder_num_heads=4,
        decoder_mlp_dim=384,
        embed_dim=192,
    )
    return on_frozen_features("coca.small", model, OBJECTIVES, batch=256, text="minilm_causal")
