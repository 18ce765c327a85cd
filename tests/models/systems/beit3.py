from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from diptych.batch import Batch
from diptych.config.objectives import BlockMasking
from diptych.encoders.visual_tokenizer import FrozenTokenizer, VisualTokenizer
from diptych.encoders.visual_tokenizer_config import VisualTokenizerConfig
from diptych.models.beit3.config import BEiT3Config
from diptych.models.beit3.model import BEiT3
from diptych.modules.heads import ITCHead, LogScale, MLPClassifier
from diptych.modules.init import init_transformer
from diptych.modules.tokens import Tokens
from diptych.objectives.itc import ITCLoss
from diptych.objectives.masked_captions import MaskedCaptionLoss
from diptych.objectives.masked_codes import MaskedCodeLoss
from diptych.objectives.mlm import MLMLoss
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import WordMasking
from diptych.tasks.classification import Classification
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.vqa import ClosedVQA
from tests.models.systems.common import (
    ANSWERS,
    CLASSES,
    FUSED,
    GRID,
    LN2,
    MASK,
    ONE_OF_EIGHT,
    PATCH,
    TEXT_LENGTH,
    UNPOOLED_PAIR,
    VOCABULARY,
    GroundedPatches,
    Job,
    System,
    classify,
    encode_image,
    encode_text,
    fuse,
)

SMALL: dict[str, Any] = dict(
    dim=32,
    depth=2,
    num_heads=4,
    mlp_dim=64,
    patch_size=PATCH,
    grid=GRID,
    vocab_size=VOCABULARY,
    text_length=TEXT_LENGTH,
    mask_token_id=MASK,
    drop_path=0.0,
)


def model(**how: Any) -> BEiT3:
    return BEiT3(BEiT3Config(**(SMALL | how)))


def pooled_features(model: Any, batch: Batch) -> list[Tokens | Tensor]:
    return [
        *model.pooled_features(model.encode_image(batch.image)),
        *model.pooled_features(model.encode_text(batch.text)),
    ]


def fuse_causal(model: Any, batch: Batch) -> list[Tokens | Tensor]:
    pair = model.fuse_causal(model.encode_text(batch.text), model.encode_image(batch.image))
    return [pair.text, pair.image, pair.pooled]


def next_token_logits(model: Any, batch: Batch) -> list[Tokens | Tensor]:
    """Texts of equal length, which a decoder requires."""
    assert batch.text is not None
    text = batch.text[torch.arange(len(batch))]
    ids = text.ids[:, :4]
    return [
        model.next_token_logits(
            type(text)(ids, torch.ones_like(ids, dtype=torch.bool)), model.encode_image(batch.image)
        )
    ]


def contrast(model: BEiT3) -> nn.Module:
    head = ITCHead(
        model.dim, model.dim, model.dim, LogScale(2.0), bias=False
    )  # cosines of 32 dimensions spread: 1 / 0.07 starts far from chance
    return Pretraining(model, nn.ModuleDict({"itc": head}), [ITCLoss()])


def captions(model: BEiT3) -> nn.Module:
    masking = WordMasking(VOCABULARY, MASK, 0.7)
    return Pretraining(model, model.pretraining_heads(), [MaskedCaptionLoss(masking, label_smoothing=0.0)])


CODES = 12
TOKENIZER: dict[str, Any] = dict(
    dim=32, depth=1, num_heads=4, mlp_dim=64, patch_size=PATCH, grid=GRID, num_codes=CODES, code_dim=8, decoder_depth=1
)


def encode_unimodal(model: Any, batch: Batch) -> list[Tokens | Tensor]:
    return [
        model.encode_unimodal(model.encode_image(batch.image)),
        model.encode_unimodal(model.encode_text(batch.text)),
    ]


def masked_data(model: BEiT3) -> Pretraining:
    """Images only, texts only, and pairs."""
    blocks, words, half = BlockMasking(min_block=2), WordMasking(VOCABULARY, MASK), WordMasking(VOCABULARY, MASK, 0.5)
    objectives = [
        MaskedCodeLoss(blocks, "masked_codes_image_only"),
        MLMLoss(words, "mlm_text_only", text_only=True),
        MaskedCodeLoss(blocks, text_masking=half),
        MLMLoss(half, image_masking=blocks),
    ]
    heads = model.pretraining_heads()
    heads["codes"] = nn.Linear(model.dim, CODES).apply(init_transformer)
    return Pretraining(
        model, heads, objectives, tokenizer=FrozenTokenizer(VisualTokenizer(VisualTokenizerConfig(**TOKENIZER)))
    )


WORDS = {
    r"model\.word\.weight\[\d+\]": "words that are not in the batch",
    r"model\.position\.weight\[[01]\]": "rows that are never read",
    r"model\.position\.weight\[10\]": "no text of the batch is so long",
}
TABLES = WORDS | {r"mask_token": "no patch is hidden"}
PAIR = {
    r"blocks\.1\.(norm2|feedforward|out|inner_norm)\.text": "only the image is used at the end",
    r"model\.transformer\.norm\.text": "only the image is used",
}
CAPTIONS_ONLY = {
    r"blocks\.1\.(norm2|feedforward|out|inner_norm)\.image": "only the text is used at the end",
    r"model\.transformer\.norm\.image": "only the text is used",
    r"model\.position\.weight\[9\]": "no prediction attends to the last token of the longest text",
}
IMAGE = {
    r"model\.(word|position)\.": "there is no text",
    r"\.text(\.|$)": "there is no text",
    r"mask_token": "no patch is hidden",
}
METHODS = {
    "encode_image": encode_image,
    "encode_text": encode_text,
    "pooled_features": pooled_features,
    "fuse": fuse,
    "fuse_causal": fuse_causal,
}
SYSTEMS = {
    "beit3, masked data": System(
        small=lambda: model(pooling="both", with_decoder=True),
        full=lambda: BEiT3(BEiT3Config(pooling="both", with_decoder=True)),
        methods={"encode_unimodal": encode_unimodal},
        forward=FUSED,
        jobs={
            "masked data": Job(
                masked_data,
                {
                    "masked_codes": math.log(CODES),
                    "masked_codes_image_only": math.log(CODES),
                    "mlm": math.log(VOCABULARY),
                },
                exempt=WORDS,
                steps=300,
            ),
        },
    ),
    "beit3": System(
        small=lambda: model(),
        full=lambda: BEiT3(BEiT3Config()),
        methods=METHODS,
        forward=FUSED,
        jobs={
            "grounding": Job(GroundedPatches, {"grounding": LN2}, exempt=TABLES | PAIR | UNPOOLED_PAIR, steps=300),
            "vqa": Job(
                lambda m: ClosedVQA(m, 32, ANSWERS),
                {"vqa": ANSWERS * LN2},
                {"vqa": ONE_OF_EIGHT},
                TABLES | PAIR,
                steps=300,
            ),
        },
    ),
    "beit3, both sides read": System(
        small=lambda: model(pooling="both"),
        full=lambda: BEiT3(BEiT3Config(pooling="both")),
        methods=METHODS,
        forward=FUSED,
        jobs={
            "nlvr2": Job(lambda m: NLVR2(m, 64, MLPClassifier(128, 64, 2)), {"nlvr2": LN2}, exempt=TABLES),
            "itc": Job(
                contrast, {"itc": math.log(32)}, prior={"itc": math.log(8)}, exempt=TABLES, apart=False, steps=300
            ),
        },
    ),
    "beit3, captions": System(
        small=lambda: model(pooling="both", with_decoder=True),
        full=lambda: BEiT3(BEiT3Config(pooling="both", with_decoder=True)),
        methods={"next_token_logits": next_token_logits, "fuse_causal": fuse_causal},
        forward=FUSED,
        jobs={
            "captions": Job(captions, {"masked_captions": math.log(VOCABULARY)}, exempt=TABLES | CAPTIONS_ONLY),
        },
    ),
    "beit3, classes": System(
        small=lambda: model(num_classes=CLASSES, final_norm=False),
        full=lambda: BEiT3(BEiT3Config(num_classes=1000, final_norm=False)),
        methods={"classify": classify},
        forward=FUSED,
        jobs={
            "classification": Job(
                lambda m: Classification(m, CLASSES),
                {"classification": math.log(CLASSES)},
                exempt=IMAGE | {r"transformer\.pooler": "used for pairs only"},
            ),
        },
    ),
}
