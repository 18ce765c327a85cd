from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from diptych.batch import Batch, Image
from diptych.models.albef.config import ALBEFConfig
from diptych.models.albef.model import ALBEF
from diptych.modules.tokens import Span, Tokens
from diptych.objectives.itc import ITCLoss
from diptych.objectives.itm import HardNegativeITMLoss
from diptych.objectives.mlm import MLMLoss
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import WordMasking
from diptych.tasks.nlvr2 import NLVR2Joint
from diptych.tasks.open_vqa import OpenVQA
from tests.models.systems.common import (
    FUSED,
    LN2,
    MASK,
    SMALL,
    TABLES,
    TEXT_LENGTH,
    VOCABULARY,
    Forward,
    Job,
    System,
    call_on_two_images,
    encode_image,
    encode_text,
    fuse,
)


def small(**others: Any) -> ALBEF:
    sizes: dict[str, Any] = {name: size for name, size in SMALL.items() if name != "depth"}
    image = {f"image_{name}": SMALL[name] for name in ("depth", "num_heads", "mlp_dim")}
    words = {"vocab_size": VOCABULARY, "text_length": TEXT_LENGTH, "embed_dim": 64}
    rest = {"image_dim": 24, "text_depth": 1, "fusion_depth": 2} | others
    whole: dict[str, Any] = {**sizes, **image, **words, **rest}
    return ALBEF(ALBEFConfig(**whole))


def pretraining(model: ALBEF) -> nn.Module:
    masking = WordMasking(VOCABULARY, MASK, whole_words=False)
    return Pretraining(model, model.pretraining_heads(), [MLMLoss(masking), ITCLoss(), HardNegativeITMLoss()])


def pooled_features(model: ALBEF, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.text is not None and batch.image is not None
    return [
        *model.pooled_features(model.encode_text(batch.text)),
        *model.pooled_features(model.encode_image(batch.image)),
    ]


def next_token_logits(model: ALBEF, batch: Batch) -> list[Tokens | Tensor]:
    """Logits of the decoder with the fused question as context; the answer's words are the question's own."""
    assert batch.text is not None and batch.image is not None
    real = batch.text.mask
    question = model.fuse(model.encode_text(batch.text), model.encode_image(batch.image)).text
    return [
        Tokens.from_padded(model.next_token_logits(batch.text, question), real, Span("text", "words", real.shape[1]))
    ]


def fuse_images(model: ALBEF, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.text is not None and batch.image is not None and isinstance(batch.image2, Image)
    images = (model.encode_image(batch.image), model.encode_image(batch.image2).with_image_index(1))
    pair = model.fuse_images(model.encode_text(batch.text), images)
    return [pair.text, pair.image, pair.pooled]


TOWERS = {"encode_image": encode_image, "encode_text": encode_text}
KEYS = {r"cross\.key\.bias": "adds the same to all that a query is compared with"}
GUESSED = {name: why for name, why in TABLES.items() if r"word\.weight" not in name}  # words are tied to the head
WRITTEN = {r"answer_words\.position\.weight\[[3-8]\]": "answers end there"}

SYSTEMS = {
    "albef": System(
        small=lambda: small(),
        full=lambda: ALBEF(ALBEFConfig()),
        methods=TOWERS | {"fuse": fuse, "pooled_features": pooled_features},
        forward=FUSED,
        jobs={
            "pretraining": Job(
                pretraining,
                {"mlm": math.log(VOCABULARY), "itc": math.log(32), "itm": LN2},
                {"itc": math.log(8), "itm": math.log(3) - 2 / 3 * LN2},
                GUESSED | KEYS,
                apart=False,
                steps=250,
            ),
        },
    ),
    "albef for vqa": System(
        small=lambda: small(decoder_depth=1),
        full=lambda: ALBEF(ALBEFConfig(decoder_depth=6)),
        methods=TOWERS | {"fuse": fuse, "next_token_logits": next_token_logits},
        forward=FUSED,
        jobs={"vqa": Job(lambda m: OpenVQA(m), {"vqa": 3 * math.log(VOCABULARY)}, exempt=TABLES | KEYS | WRITTEN)},
    ),
    "albef for nlvr2": System(
        small=lambda: small(num_images=2),
        full=lambda: ALBEF(ALBEFConfig(num_images=2)),
        methods=TOWERS | {"fuse_images": fuse_images},
        forward=Forward(call_on_two_images, fuse_images),
        jobs={"nlvr2": Job(lambda m: NLVR2Joint(m, 32), {"nlvr2": LN2}, exempt=TABLES | KEYS)},
    ),
}
