from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from diptych.batch import Batch
from diptych.models.blip.config import BLIPConfig
from diptych.models.blip.model import BLIP
from diptych.modules.tokens import Span, Tokens
from diptych.objectives.itc import ITCLoss
from diptych.objectives.itm import HardNegativeITMLoss, ITMLoss
from diptych.objectives.lm import LMLoss
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.tasks.captioning import Captioning
from diptych.tasks.nlvr2 import NLVR2Joint
from diptych.tasks.open_vqa import OpenVQA
from tests.models.systems.common import (
    FUSED,
    LN2,
    SMALL,
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


def small(variant: str, **others: Any) -> BLIP:
    image = {f"image_{name}": SMALL[name] for name in ("dim", "depth", "num_heads", "mlp_dim")}
    ids = {"vocab_size": VOCABULARY, "text_length": TEXT_LENGTH, "bos_token_id": 3, "enc_token_id": 5}
    sizes: dict[str, Any] = SMALL | image | ids | {"image_dim": 24} | others
    return BLIP(BLIPConfig(**sizes | {"embed_dim": 128, "variant": variant}))


def pretraining(model: BLIP, *objectives: Objective) -> nn.Module:
    return Pretraining(model, model.pretraining_heads(), [ITCLoss(), *objectives])


def encode_unimodal(model: BLIP, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.text is not None
    return [model.encode_unimodal(model.encode_text(batch.text))]


def pooled_features(model: BLIP, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.text is not None and batch.image is not None
    return [
        *model.pooled_features(model.encode_text(batch.text)),
        *model.pooled_features(model.encode_image(batch.image)),
    ]


def next_token_logits(model: BLIP, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.text is not None and batch.image is not None
    real = batch.text.mask
    logits = model.next_token_logits(batch.text, model.encode_image(batch.image))
    return [Tokens.from_padded(logits, real, Span("text", "words", real.shape[1]))]


def call_decoder(model: BLIP, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.text is not None and batch.image is not None
    logits, real = model(batch.image, batch.text), batch.text.mask
    return [Tokens.from_padded(logits, real, Span("text", "words", real.shape[1]))]


def decode_answers(model: BLIP, batch: Batch) -> list[Tokens | Tensor]:
    """Logits of the decoder with the fused question as context; the answer's words are the question's own."""
    assert batch.text is not None and batch.image is not None
    real = batch.text.mask
    question = model.fuse(model.encode_text(batch.text), model.encode_image(batch.image)).text
    return [
        Tokens.from_padded(model.next_token_logits(batch.text, question), real, Span("text", "words", real.shape[1]))
    ]


def fuse_images(model: BLIP, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.text is not None and batch.image is not None and batch.image2 is not None
    images = (model.encode_image(batch.image), model.encode_image(batch.image2).with_image_index(1))
    pair = model.fuse_images(model.encode_text(batch.text), images)
    return [pair.text, pair.image, pair.pooled]


def matching(model: BLIP) -> nn.Module:
    return Pretraining(model, nn.ModuleDict({"itm": model.pretraining_heads()["itm"]}), [ITMLoss()])


READS = {
    "encode_image": encode_image,
    "encode_text": encode_text,
    "fuse": fuse,
    "encode_unimodal": encode_unimodal,
    "pooled_features": pooled_features,
}
SAME = {r"cross\.(first\.|second\.)?key\.bias": "moves all scores of a query alike"}
BEHIND = {r"words\.position\.weight\[8\]": "no text of the batch is so long"}
LAST = {r"words\.position\.weight\[[78]\]": "no text is that long, and nothing is predicted from its last token"}
UNSEEN = {r"words\.word\.weight\[\d+\]": "words that are not in the batch"}
ANSWERED = {
    r"decoder\.words\.position\.weight\[[3-8]\]": "no answer is that long, and nothing is predicted from its last token"
}
QUESTION_WORDS = {r"encoder\.words\.word\.weight\[\d+\]": "words that are not in the questions"}
QUESTIONS = {r"encoder\.words\.position\.weight\[8\]": "no question is that long"}

# What hard negatives cost at first hangs on how alike images and texts are then: matching is taught by chosen ones
# here.
SYSTEMS = {
    "blip": System(
        small=lambda: small("pretraining"),
        full=lambda: BLIP(BLIPConfig()),
        methods=READS | {"next_token_logits": next_token_logits},
        forward=FUSED,
        jobs={
            "pretraining": Job(
                lambda m: pretraining(m, HardNegativeITMLoss(uniform_mix=1e-4), LMLoss()),
                {"itc": math.log(32), "lm": math.log(VOCABULARY)},
                exempt=SAME | BEHIND,
                apart=False,
            ),
        },
    ),
    "blip for retrieval": System(
        small=lambda: small("retrieval"),
        full=lambda: BLIP(BLIPConfig(variant="retrieval")),
        methods=READS,
        forward=FUSED,
        jobs={"matching": Job(matching, {"itm": LN2}, exempt=SAME | BEHIND | UNSEEN)},
    ),
    "blip for captions": System(
        small=lambda: small("caption"),
        full=lambda: BLIP(BLIPConfig(variant="caption")),
        methods={"encode_image": encode_image, "next_token_logits": next_token_logits},
        forward=Forward(call_decoder, next_token_logits),
        jobs={"caption": Job(lambda m: Captioning(m, 2), {"caption": math.log(VOCABULARY)}, exempt=SAME | LAST)},
    ),
    "blip for vqa": System(
        small=lambda: small("vqa"),
        full=lambda: BLIP(BLIPConfig(variant="vqa")),
        methods={
            "encode_image": encode_image,
            "encode_text": encode_text,
            "fuse": fuse,
            "next_token_logits": decode_answers,
        },
        forward=FUSED,
        jobs={
            "vqa": Job(OpenVQA, {"vqa": 3 * math.log(VOCABULARY)}, exempt=SAME | ANSWERED | QUESTION_WORDS | QUESTIONS),
        },
    ),
    "blip for nlvr2": System(
        small=lambda: small("nlvr2", average_image_attention=1),
        full=lambda: BLIP(BLIPConfig(variant="nlvr2", average_image_attention=1)),
        methods={"encode_image": encode_image, "encode_text": encode_text, "fuse_images": fuse_images},
        forward=Forward(call_on_two_images, fuse_images),
        jobs={"nlvr2": Job(lambda m: NLVR2Joint(m, 32), {"nlvr2": LN2}, exempt=SAME | BEHIND | UNSEEN)},
    ),
}
