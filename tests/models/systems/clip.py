from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from diptych.batch import Batch
from diptych.models.clip.config import CLIPConfig
from diptych.models.clip.model import CLIP
from diptych.models.coca.config import CoCaConfig
from diptych.models.coca.model import CoCa
from diptych.modules.tokens import Span, Tokens
from diptych.objectives.itc import ITCLoss
from diptych.objectives.lm import LMLoss
from diptych.objectives.pretraining import Pretraining
from tests.models.systems.common import (
    CLASSES,
    SMALL,
    TEXT_LENGTH,
    VOCABULARY,
    Forward,
    Job,
    System,
    encode_image,
    encode_text,
    fuse,
    image_classifier,
)

# The joint space is wide, as the paper's: at random, vectors of few dimensions are too much alike for a scale of 14.
SIZES: dict[str, Any] = {name: size for name, size in SMALL.items() if name != "dropout"} | dict(
    text_dim=24,
    text_depth=2,
    text_num_heads=3,
    text_mlp_dim=48,
    vocab_size=VOCABULARY,
    text_length=TEXT_LENGTH,
    embed_dim=1024,
)
COCA: dict[str, Any] = SIZES | dict(
    num_queries=5, pool_num_heads=2, decoder_depth=2, decoder_num_heads=4, decoder_mlp_dim=40
)
WORDS = {r"text\.word\.weight\[\d+\]": "words that are not in the batch"}
ALIKE = {r"attention\.key\.bias": "moves all scores of a query alike"}


def pooled_features(model: CLIP | CoCa, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.image is not None and batch.text is not None
    return [
        *model.pooled_features(model.encode_image(batch.image)),
        *model.pooled_features(model.encode_text(batch.text)),
    ]


def call_towers(model: CLIP, batch: Batch) -> list[Tokens | Tensor]:
    return list(model(batch.image, batch.text))


def call_captioner(model: CoCa, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.text is not None
    features_and_logits, real = model(batch.image, batch.text), batch.text.mask
    logits = Tokens.from_padded(features_and_logits.logits, real, Span("text", "words", real.shape[1]))
    return [*features_and_logits[:2], logits]


def compose_captioner(model: CoCa, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.image is not None and batch.text is not None
    logits, real = model.next_token_logits(batch.text, model.encode_image(batch.image)), batch.text.mask
    return [*pooled_features(model, batch), Tokens.from_padded(logits, real, Span("text", "words", real.shape[1]))]


def contrast(model: CLIP) -> Pretraining:
    return Pretraining(model, model.pretraining_heads(), [ITCLoss()])


def captions(model: CoCa) -> Pretraining:
    return Pretraining(model, model.pretraining_heads(), [ITCLoss(), LMLoss("caption", weight=2.0)])


TOWERS = {"encode_image": encode_image, "encode_text": encode_text, "pooled_features": pooled_features}
PROJECTED = Forward(call_towers, pooled_features)
CONTRAST = {"pretraining": Job(contrast, {"itc": math.log(32)}, {"itc": math.log(8)}, WORDS, apart=False)}
CLASSIFICATION = {"classification": math.log(CLASSES)}
TEXT = {r"model\.text\.": "images are classified without text"}
CAPTIONER = {
    r"model\.(text_norm|self_blocks|cross_blocks|norm|lm_head)\.": "images are classified without text",
}
SYSTEMS = {
    "clip": System(
        small=lambda: CLIP(CLIPConfig(**SIZES)),
        full=lambda: CLIP(CLIPConfig()),
        methods=TOWERS,
        forward=PROJECTED,
        jobs=CONTRAST | {"classification": Job(image_classifier(32), CLASSIFICATION, exempt=TEXT)},
    ),
    "clip, as open_clip": System(
        small=lambda: CLIP(CLIPConfig(**SIZES, activation="gelu")),
        full=lambda: CLIP(CLIPConfig(activation="gelu")),
        methods=TOWERS,
        forward=PROJECTED,
        jobs=CONTRAST,
    ),
    "coca": System(
        small=lambda: CoCa(CoCaConfig(**COCA)),
        full=lambda: CoCa(CoCaConfig()),
        methods=TOWERS | {"fuse": fuse},
        forward=Forward(call_captioner, compose_captioner),
        jobs={
            "pretraining": Job(
                captions,
                {"itc": math.log(32), "caption": math.log(VOCABULARY)},
                {"itc": math.log(8)},
                WORDS | ALIKE,
                apart=False,
            ),
            "classification": Job(image_classifier(24), CLASSIFICATION, exempt=TEXT | CAPTIONER | ALIKE),
        },
    ),
}
