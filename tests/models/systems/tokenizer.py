from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from diptych.batch import Batch
from diptych.encoders.visual_tokenizer import VisualTokenizer
from diptych.encoders.visual_tokenizer_config import VisualTokenizerConfig
from diptych.modules.tokens import Tokens
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.vqkd import UnusedCodes, VQKDLoss
from tests.models.systems.common import GRID, PATCH, Colours, Forward, Job, System, encode_image

SMALL: dict[str, Any] = dict(
    dim=32,
    depth=2,
    num_heads=4,
    mlp_dim=64,
    patch_size=PATCH,
    grid=GRID,
    num_codes=12,
    code_dim=8,
    decoder_depth=1,
    feature_dim=1280,
    patience=3,
)


def small() -> VisualTokenizer:
    return VisualTokenizer(VisualTokenizerConfig(**SMALL))


def vqkd(model: VisualTokenizer) -> Pretraining:
    return Pretraining(model, nn.ModuleDict(), [VQKDLoss(), UnusedCodes()], teacher_network=Colours())


def decode_codes(model: Any, batch: Batch) -> list[Tokens | Tensor]:
    return [model.decode_codes(model.quantize(model.encode_image(batch.image))[0])]


def call(model: Any, batch: Batch) -> list[Tokens | Tensor]:
    decoded, codes = model(batch.image)
    return [decoded, codes]


def decode_and_codes(model: Any, batch: Batch) -> list[Tokens | Tensor]:
    return [*decode_codes(model, batch), model.quantize(model.encode_image(batch.image))[1]]


SYSTEMS = {
    "tokenizer": System(
        small=small,
        full=lambda: VisualTokenizer(VisualTokenizerConfig()),
        methods={"encode_image": encode_image, "decode_codes": decode_codes},
        forward=Forward(call, decode_and_codes),
        jobs={"vqkd": Job(vqkd, {}, prior={"vqkd": 1.0})},  # 1: predicting the mean feature
    ),
}
