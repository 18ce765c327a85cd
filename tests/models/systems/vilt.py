from __future__ import annotations

import math

from diptych.models.vilt.config import ViLTConfig
from diptych.models.vilt.model import ViLT
from diptych.objectives.itm import ITMLoss
from diptych.objectives.mlm import MLMLoss
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import WordMasking
from diptych.objectives.wpa import WPALoss
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.retrieval_training import Retrieval
from diptych.tasks.vqa import ClosedVQA
from tests.models.systems.common import (
    ALL_ALIKE,
    ANSWERS,
    FALSE,
    FUSED,
    LN2,
    MASK,
    ONE_IMAGE,
    ONE_OF_EIGHT,
    SMALL,
    TABLES,
    TEXT_LENGTH,
    UNPOOLED_PAIR,
    VOCABULARY,
    GroundedPatches,
    Job,
    System,
    encode_image,
    encode_text,
    fuse,
)


def pretraining(model: ViLT) -> Pretraining:
    masking = WordMasking(VOCABULARY, MASK)
    return Pretraining(model, model.pretraining_heads(), [ITMLoss(), MLMLoss(masking), WPALoss()])


SYSTEMS = {
    "vilt": System(
        small=lambda: ViLT(ViLTConfig(**SMALL, vocab_size=VOCABULARY, text_length=TEXT_LENGTH, num_images=2)),
        full=lambda: ViLT(ViLTConfig(num_images=2)),
        methods={"encode_image": encode_image, "encode_text": encode_text, "fuse": fuse},
        forward=FUSED,
        jobs={
            "pretraining": Job(pretraining, {"itm": LN2, "mlm": math.log(VOCABULARY)}, exempt=TABLES | ONE_IMAGE),
            "vqa": Job(
                lambda m: ClosedVQA(m, 32, ANSWERS), {"vqa": ANSWERS * LN2}, {"vqa": ONE_OF_EIGHT}, TABLES | ONE_IMAGE
            ),
            "grounding": Job(GroundedPatches, {"grounding": LN2}, exempt=TABLES | ONE_IMAGE | UNPOOLED_PAIR, steps=300),
            "nlvr2": Job(lambda m: NLVR2(m, 32), {"nlvr2": LN2}, exempt=TABLES),
            "retrieval": Job(
                lambda m: Retrieval(m, 32, FALSE),
                {"retrieval": math.log(1 + FALSE)},
                exempt=TABLES | ONE_IMAGE | ALL_ALIKE,
            ),
        },
    ),
}
