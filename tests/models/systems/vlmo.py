from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diptych.batch import Batch
from diptych.config.objectives import BlockMasking
from diptych.encoders.visual_tokenizer import FrozenTokenizer, VisualTokenizer
from diptych.encoders.visual_tokenizer_config import VisualTokenizerConfig
from diptych.models.vlmo.config import VLMoConfig
from diptych.models.vlmo.model import ITC_HEADS, VLMo
from diptych.modules.heads import ITCHead, LogScale
from diptych.modules.init import init_transformer
from diptych.modules.tokens import Tokens
from diptych.objectives.itc import ITCLoss
from diptych.objectives.itm import HardNegativeITMLoss
from diptych.objectives.masked_codes import MaskedCodeLoss
from diptych.objectives.mlm import MLMLoss
from diptych.objectives.pretraining import Objective, Pretraining
from diptych.objectives.random_choices import WordMasking
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.retrieval_training import ContrastRetrieval
from diptych.tasks.vqa import ClosedVQA
from tests.models.systems.common import (
    ANSWERS,
    FUSED,
    GRID,
    LN2,
    MASK,
    ONE_IMAGE,
    ONE_OF_EIGHT,
    PATCH,
    SMALL,
    TABLES,
    TEXT_LENGTH,
    VOCABULARY,
    GroundedPatches,
    Job,
    System,
    encode_image,
    encode_text,
    fuse,
)


def small(**others: Any) -> VLMo:
    sizes = {name: value for name, value in SMALL.items() if name != "dropout"} | {
        "depth": 3,
        "vl_start_layer": 2,
        "drop_path": 0.0,
    }
    return VLMo(VLMoConfig(**sizes | others, vocab_size=VOCABULARY, text_length=TEXT_LENGTH, num_images=2))


def pretraining(model: VLMo, objectives: Sequence[Objective]) -> Pretraining:
    read = {"itc": ITC_HEADS, "itm": ("itm",), "mlm": ("mlm",)}
    heads = model.pretraining_heads()
    for name in set(heads) - {head for o in objectives for head in read[o.name]}:
        del heads[name]
    return Pretraining(model, heads, objectives)


def encode_unimodal(model: VLMo, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.text is not None and batch.image is not None
    return [
        model.encode_unimodal(model.encode_text(batch.text)),
        model.encode_unimodal(model.encode_image(batch.image)),
    ]


def pooled_features(model: VLMo, batch: Batch) -> list[Tokens | Tensor]:
    assert batch.text is not None and batch.image is not None
    return [
        *model.pooled_features(model.encode_text(batch.text)),
        *model.pooled_features(model.encode_image(batch.image)),
    ]


def encode_masked(model: VLMo, batch: Batch) -> list[Tokens | Tensor]:
    """The first patch of each image."""
    assert batch.image is not None
    rows, columns = (side // PATCH for side in batch.image.pixels.shape[-2:])
    first = torch.arange(rows * columns).expand(len(batch), -1) == 0
    return [model.encode_unimodal(model.encode_masked(batch.image, first))]


def images_only(model: VLMo) -> Pretraining:
    tokenizer = VisualTokenizer(VisualTokenizerConfig(32, 1, 4, 64, PATCH, GRID, CODES, 8, 1))
    heads = nn.ModuleDict({"codes": nn.Linear(32, CODES)}).apply(init_transformer)
    objective = MaskedCodeLoss(BlockMasking(min_block=2), "masked_codes_image_only")
    return Pretraining(model, heads, [objective], tokenizer=FrozenTokenizer(tokenizer))


CODES = 12
METHODS = {
    "encode_image": encode_image,
    "encode_text": encode_text,
    "fuse": fuse,
    "encode_unimodal": encode_unimodal,
    "pooled_features": pooled_features,
}
MASKED = MLMLoss(WordMasking(VOCABULARY, MASK), weight=0.25)
UNPOOLED = {r"pooler\.": "used for pairs only"}
NO_PAIRS = UNPOOLED | {r"\.vl_ffn\.": "there are no pairs"}
NO_TEXTS = {
    r"model\.words\.": "there are no texts",
    r"modality\.weight\[[02]\]": "there are no texts, and one image",
    r"modality_ffn\.text\.": "there are no texts",
    r"pooler\.": "used for pairs only",
}
NO_IMAGES = {
    r"patches\.": "there are no images",
    r"modality\.weight\[1\]": "there are no images",
    r"modality_ffn\.image\.": "there are no images",
}
EARLY = {
    r"blocks\.2\.modality_ffn\.": "the last block sends pairs to the expert of both",
}
WORDS = {name: why for name, why in TABLES.items() if "position" not in name}

SYSTEMS = {
    **{
        f"vlmo on images only, {placed}": System(
            small=lambda relative=relative: small(relative_position=relative, vl_start_layer=3, with_mask_token=True),
            full=lambda relative=relative: VLMo(
                VLMoConfig(relative_position=relative, vl_start_layer=12, with_mask_token=True)
            ),
            methods={"encode_masked": encode_masked},
            forward=FUSED,
            jobs={
                "masked images": Job(
                    images_only, {"masked_codes_image_only": math.log(CODES)}, exempt=NO_TEXTS, steps=300
                ),
            },
        )
        for placed, relative in (("positions in attention", True), ("positions added", False))
    },
    "vlmo": System(
        small=small,
        full=lambda: VLMo(VLMoConfig(num_images=2)),
        methods=METHODS,
        forward=FUSED,
        jobs={
            "pretraining": Job(
                lambda m: pretraining(m, [ITCLoss(head_names=ITC_HEADS), HardNegativeITMLoss(), MASKED]),
                # without ITM, whose negatives change while ITC trains: a hundred steps do not overfit it
                {"itc": math.log(32), "mlm": math.log(VOCABULARY)},
                exempt=WORDS | ONE_IMAGE,
                apart=False,
            ),
            "masked words of pairs": Job(
                lambda m: pretraining(m, [MASKED]),
                {"mlm": math.log(VOCABULARY)},
                exempt=WORDS | ONE_IMAGE | EARLY | UNPOOLED,
            ),
            "masked words of texts": Job(
                lambda m: pretraining(m, [MLMLoss(WordMasking(VOCABULARY, MASK), text_only=True)]),
                {"mlm": math.log(VOCABULARY)},
                exempt=WORDS | ONE_IMAGE | NO_PAIRS | NO_IMAGES,
            ),
            "vqa": Job(
                lambda m: ClosedVQA(m, 32, ANSWERS),
                {"vqa": ANSWERS * LN2},
                {"vqa": ONE_OF_EIGHT},
                WORDS | ONE_IMAGE | EARLY,
                steps=300,
            ),
            "grounding": Job(
                GroundedPatches, {"grounding": LN2}, exempt=WORDS | ONE_IMAGE | EARLY | UNPOOLED, steps=300
            ),
            "nlvr2": Job(lambda m: NLVR2(m, 32), {"nlvr2": LN2}, exempt=WORDS | EARLY),
        },
    ),
    "vlmo, positions added to embeddings": System(
        small=lambda: small(relative_position=False, layer_scale=0.0, num_itc_branches=1),
        full=lambda: VLMo(
            VLMoConfig(
                dim=544,
                depth=24,
                num_heads=16,
                mlp_dim=2176,
                vl_start_layer=21,
                text_length=40,
                relative_position=False,
                layer_scale=0.0,
                num_images=2,
            )
        ),
        methods=METHODS,
        forward=FUSED,
        jobs={
            "retrieval": Job(
                lambda m: ContrastRetrieval(m, ITCHead(32, 32, 32, LogScale(2.0), bias=False)),
                {"retrieval": math.log(32)},
                {"retrieval": math.log(8)},
                exempt=TABLES | ONE_IMAGE | NO_PAIRS,
                apart=False,
                steps=300,
            ),
        },
    ),
}
