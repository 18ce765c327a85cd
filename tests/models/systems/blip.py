from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from diptych.batch import Batch
from diptych.models.blip.model import BLIP
from diptych.modules.tokens import Span, Tokens
from diptych.objectives.itc import ITC
from diptych.objectives.itm import ITM, HardNegativeITM
from diptych.objectives.lm import LM
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.tasks.captioning import Captioning
from diptych.tasks.nlvr2 import NLVR2Joint
from diptych.tasks.vqa import OpenVQA
from tests.models.systems.common import (
    LN2,
    SMALL,
    TEXT_LENGTH,
    VOCABULARY,
    Job,
    System,
    encode_image,
    encode_text,
    fuse,
)  # fmt: skip


def small(variant: str, **others: Any) -> BLIP:
    image = {f"image_{name}": SMALL[name] for name in ("dim", "depth", "num_heads", "mlp_dim")}
    ids = {"vocab_size": VOCABULARY, "text_length": TEXT_LENGTH, "bos_token_id": 3, "enc_token_id": 5}
    sizes: dict[str, Any] = SMALL | image | ids | {"image_dim": 24} | others
    return BLIP(**sizes, embed_dim=128, variant=variant)


def pretraining(model: BLIP, *objectives: Objective) -> nn.Module:
    return Pretraining(model, model.pretraining_heads(), [ITC(), *objectives])


def alone(model: BLIP, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.text is not None
    return [model.encode_unimodal(model.encode_text(batch.text))]


def unimodal(model: BLIP, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.text is not None and batch.image is not None
    return [
        *model.pooled_features(model.encode_text(batch.text)),
        *model.pooled_features(model.encode_image(batch.image)),
    ]


def decode(model: BLIP, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.text is not None and batch.image is not None
    real = batch.text.mask
    logits = model.next_token_logits(batch.text, model.encode_image(batch.image))
    return [Tokens.from_padded(logits, real, Span("text", "words", real.shape[1]))]


def decode_answers(model: BLIP, batch: Batch) -> list[Tokens | Tensor]:
    """Of a question that has met its image: the words are the question's own."""
    assert batch.text is not None and batch.image is not None
    real = batch.text.mask
    question = model.fuse(model.encode_text(batch.text), model.encode_image(batch.image)).text
    return [
        Tokens.from_padded(model.next_token_logits(batch.text, question), real, Span("text", "words", real.shape[1]))
    ]


def fuse_several(model: BLIP, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.text is not None and batch.image is not None and batch.image2 is not None
    images = (model.encode_image(batch.image), model.encode_image(batch.image2).with_image_index(1))  # type: ignore[arg-type]
    pair = model.fuse_images(model.encode_text(batch.text), images)
    return [pair.text, pair.image, pair.pooled]


def matching(model: BLIP) -> nn.Module:
    return Pretraining(model, nn.ModuleDict({"match": model.pretraining_heads()["match"]}), [ITM()])


READS = {"encode_image": encode_image, "encode_text": encode_text, "fuse": fuse, "alone": alone, "unimodal": unimodal}
SAME = {r"cross\.(first\.|second\.)?key\.bias": "moves all scores of a query alike"}
BEHIND = {r"words\.position\.weight\[8\]": "no text of the batch is so long"}
LAST = {r"words\.position\.weight\[[78]\]": "no text of the batch is so long, and its last piece foretells nothing"}
UNSEEN = {r"words\.word\.weight\[\d+\]": "words that are not in the batch"}
ANSWERED = {r"decoder\.words\.position\.weight\[[3-8]\]": "no answer is so long, and its last piece foretells nothing"}
ASKED = {r"encoder\.words\.word\.weight\[\d+\]": "words that are not in the questions"}
QUESTIONS = {r"encoder\.words\.position\.weight\[8\]": "no question is so long"}

# What hard negatives cost at first hangs on how alike images and texts are then: matching is taught by chosen ones here.
SYSTEMS = {
    "blip": System(
        small=lambda: small("pretraining"),
        full=lambda: BLIP(),
        verbs=READS | {"decode": decode},
        jobs={
            "pretraining": Job(
                lambda m: pretraining(m, HardNegativeITM(uniform_mix=1e-4), LM()),
                {"itc": math.log(32), "lm": math.log(VOCABULARY)},
                exempt=SAME | BEHIND,
                apart=False,
            ),
        },
    ),
    "blip for retrieval": System(
        small=lambda: small("retrieval"),
        full=lambda: BLIP(variant="retrieval"),
        verbs=READS,
        jobs={"matching": Job(matching, {"itm": LN2}, exempt=SAME | BEHIND | UNSEEN)},
    ),
    "blip for captions": System(
        small=lambda: small("caption"),
        full=lambda: BLIP(variant="caption"),
        verbs={"encode_image": encode_image, "decode": decode},
        jobs={"caption": Job(lambda m: Captioning(m, 2), {"caption": math.log(VOCABULARY)}, exempt=SAME | LAST)},
    ),
    "blip for vqa": System(
        small=lambda: small("vqa"),
        full=lambda: BLIP(variant="vqa"),
        verbs={"encode_image": encode_image, "encode_text": encode_text, "fuse": fuse, "decode": decode_answers},
        jobs={
            "vqa": Job(OpenVQA, {"vqa": 3 * math.log(VOCABULARY)}, exempt=SAME | ANSWERED | ASKED | QUESTIONS),
        },
    ),
    "blip for nlvr2": System(
        small=lambda: small("nlvr2", averaged=1),
        full=lambda: BLIP(variant="nlvr2", averaged=1),
        verbs={"encode_image": encode_image, "encode_text": encode_text, "fuse_several": fuse_several},
        jobs={"nlvr2": Job(lambda m: NLVR2Joint(m, 32), {"nlvr2": LN2}, exempt=SAME | BEHIND | UNSEEN)},
    ),
}
