"""Models that speak."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from diptych.ranges import (
    Activation,
    Cells,
    ClassesOrNone,
    Depth,
    DepthOrNone,
    Epsilon,
    Heads,
    Hidden,
    Length,
    Patch,
    Place,
    Range,
    ShareBelowOne,
    Vocabulary,
    Width,
    require_at_most,
    require_multiple,
    settings,
)

if TYPE_CHECKING:
    from diptych.models import beit3, blip, coca


@settings("model")
class BLIP:
    """Arguments of models.blip.BLIP; the defaults are those of pre-training with ViT-B. `begin`, `ground`: the ids of [DEC], [ENC]."""

    image_width: Width = 768
    image_depth: Depth = 12
    image_heads: Heads = 12
    image_hidden: Hidden = 3072
    patch: Patch = 16
    grid: tuple[Cells, Cells] = (14, 14)
    width: Width = 768
    depth: Depth = 12
    heads: Heads = 12
    hidden: Hidden = 3072
    vocabulary: Vocabulary = 30524
    text_length: Length = 512
    begin: Place = 30522
    ground: Place = 30523
    joint: Width = 256
    form: Literal["pretraining", "retrieval", "caption", "vqa", "nlvr2"] = "pretraining"
    averaged: DepthOrNone = 6
    dropout: ShareBelowOne = 0.1
    image_activation: Activation = "gelu"
    image_eps: Epsilon = 1e-6
    activation: Activation = "gelu"
    eps: Epsilon = 1e-12

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("width", "heads"), ("image_width", "image_heads"))
        require_at_most(self, "model", ("begin", "vocabulary"), ("ground", "vocabulary"), below=True)

    def build(self) -> blip.BLIP:
        from diptych.models.blip import BLIP as Model

        return Model(**vars(self))


@settings("model")
class CoCa:
    """Arguments of models.coca.CoCa; the defaults are open_clip's ViT-B/32."""

    width: Width = 768
    depth: Depth = 12
    heads: Heads = 12
    hidden: Hidden = 3072
    patch: Patch = 32
    grid: tuple[Cells, Cells] = (7, 7)
    queries: Annotated[int, Range(1, 4096)] = 256
    pool_heads: Heads = 8
    text_width: Width = 512
    text_depth: Depth = 12
    text_heads: Heads = 8
    text_hidden: Hidden = 2048
    vocabulary: Vocabulary = 49408
    text_length: Length = 76
    decoder_depth: Depth = 12
    decoder_heads: Heads = 8
    decoder_hidden: Hidden = 2048
    joint: Width = 512
    activation: Activation = "gelu"
    pad: Place = 0

    def __post_init__(self) -> None:
        require_multiple(
            self,
            "model",
            ("width", "heads"),
            ("text_width", "text_heads"),
            ("text_width", "decoder_heads"),
            ("text_width", "pool_heads"),
        )
        require_at_most(self, "model", ("pad", "vocabulary"), below=True)

    def build(self) -> coca.CoCa:
        from diptych.models.coca import CoCa as Model

        return Model(**vars(self))


@settings("model")
class BEiT3:
    """Arguments of models.beit3.BEiT3; the defaults are the base model's. `mask`: the id of [MASK]."""

    width: Width = 768
    depth: Depth = 12
    heads: Heads = 12
    hidden: Hidden = 3072
    patch: Patch = 16
    grid: tuple[Cells, Cells] = (14, 14)
    vocabulary: Vocabulary = 64010
    text_length: Length = 1022
    pooling: Literal["image", "both"] = "image"
    final_norm: bool = True
    classes: ClassesOrNone = 0
    speaks: bool = False
    mask: Place = 64001
    drop: ShareBelowOne = 0.1

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("width", "heads"))
        require_at_most(self, "model", ("mask", "vocabulary"), below=True)

    def build(self) -> beit3.BEiT3:
        from diptych.models.beit3 import BEiT3 as Model

        return Model(**vars(self))
