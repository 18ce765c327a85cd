"""Models that speak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych.models import beit3, blip, coca


@dataclass(frozen=True)
class BLIP:
    """Arguments of models.blip.BLIP; the defaults are those of pre-training with ViT-B. `begin`, `ground`: the ids of [DEC], [ENC]."""

    image_width: int = 768
    image_depth: int = 12
    image_heads: int = 12
    image_hidden: int = 3072
    patch: int = 16
    grid: tuple[int, int] = (14, 14)
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    vocabulary: int = 30524
    text_length: int = 512
    begin: int = 30522
    ground: int = 30523
    joint: int = 256
    form: str = "pretraining"
    averaged: int = 6
    dropout: float = 0.1
    image_activation: str = "gelu"
    image_eps: float = 1e-6
    activation: str = "gelu"
    eps: float = 1e-12

    def build(self) -> blip.BLIP:
        from diptych.models.blip import BLIP as Model

        return Model(**vars(self))


@dataclass(frozen=True)
class CoCa:
    """Arguments of models.coca.CoCa; the defaults are open_clip's ViT-B/32."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    patch: int = 32
    grid: tuple[int, int] = (7, 7)
    queries: int = 256
    pool_heads: int = 8
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    text_hidden: int = 2048
    vocabulary: int = 49408
    text_length: int = 76
    decoder_depth: int = 12
    decoder_heads: int = 8
    decoder_hidden: int = 2048
    joint: int = 512
    activation: str = "gelu"
    pad: int = 0

    def build(self) -> coca.CoCa:
        from diptych.models.coca import CoCa as Model

        return Model(**vars(self))


@dataclass(frozen=True)
class BEiT3:
    """Arguments of models.beit3.BEiT3; the defaults are the base model's. `mask`: the id of [MASK]."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    patch: int = 16
    grid: tuple[int, int] = (14, 14)
    vocabulary: int = 64010
    text_length: int = 1022
    pooling: str = "image"
    final_norm: bool = True
    classes: int = 0
    speaks: bool = False
    mask: int = 64001
    drop: float = 0.1

    def build(self) -> beit3.BEiT3:
        from diptych.models.beit3 import BEiT3 as Model

        return Model(**vars(self))
