"""Models of images alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from diptych.ranges import (
    Activation,
    Cells,
    ClassesOrNone,
    Count,
    Depth,
    DepthOrNone,
    Epsilon,
    Heads,
    Hidden,
    Longest,
    Patch,
    Pixels,
    Range,
    ShareBelowOne,
    Width,
    require_multiple,
    settings,
)

if TYPE_CHECKING:
    from diptych.models import crossvit, mae, tokenizer, vit


@settings("model")
class ViT:
    """Arguments of models.vit.ViT; the defaults are ViT-B/16."""

    width: Width = 768
    depth: Depth = 12
    heads: Heads = 12
    hidden: Hidden = 3072
    patch: Patch = 16
    grid: tuple[Cells, Cells] = (14, 14)
    classes: ClassesOrNone = 1000
    representation: Annotated[int, Range(0, 2**16)] = 0  # width of a layer before the classifier; 0: none
    pooling: Literal["cls", "average"] = "cls"
    dropout: ShareBelowOne = 0.0
    activation: Activation = "gelu"
    eps: Epsilon = 1e-6

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("width", "heads"))

    def build(self) -> vit.ViT:
        from diptych.models.vit import ViT as Model

        return Model(**vars(self))


@settings("model")
class CrossViT:
    """Arguments of models.crossvit.CrossViT; the defaults are CrossViT-9."""

    sizes: tuple[Pixels, Pixels] = (240, 224)
    patches: tuple[Patch, Patch] = (12, 16)
    widths: tuple[Width, Width] = (128, 256)
    heads: tuple[Heads, Heads] = (4, 4)
    hidden: tuple[Hidden, Hidden] = (384, 768)
    stages: Annotated[tuple[tuple[DepthOrNone, DepthOrNone, DepthOrNone], ...], Longest(64)] = (
        (1, 3, 0),
        (1, 3, 0),
        (1, 3, 0),
    )
    stem: bool = False
    classes: ClassesOrNone = 1000
    dropout: ShareBelowOne = 0.0

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("sizes", "patches"), ("widths", "heads"))

    def build(self) -> crossvit.CrossViT:
        from diptych.models.crossvit import CrossViT as Model

        return Model(**vars(self))


@settings("model")
class MAE:
    """Arguments of models.mae.MAE; the defaults are ViT-B/16."""

    width: Width = 768
    depth: Depth = 12
    heads: Heads = 12
    hidden: Hidden = 3072
    patch: Patch = 16
    grid: tuple[Cells, Cells] = (14, 14)
    decoder_width: Width = 512
    decoder_depth: Depth = 8
    decoder_heads: Heads = 16
    decoder_hidden: Hidden = 2048

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("width", "heads"), ("decoder_width", "decoder_heads"))
        for name in ("width", "decoder_width"):  # of sines and cosines, for rows and for columns
            if getattr(self, name) % 4:
                raise ValueError(f"model.{name} must be a multiple of 4: got {getattr(self, name)}")

    def build(self) -> mae.MAE:
        from diptych.models.mae import MAE as Model

        return Model(**vars(self))


@settings("model")
class VisualTokenizer:
    """Arguments of models.tokenizer.VisualTokenizer; the defaults are BEiT v2's base size. `features`: the teacher's width."""

    width: Width = 768
    depth: Depth = 12
    heads: Heads = 12
    hidden: Hidden = 3072
    patch: Patch = 16
    grid: tuple[Cells, Cells] = (14, 14)
    codes: Annotated[int, Range(2, 2**16)] = 8192
    code_width: Width = 32
    decoder_depth: Depth = 3
    features: Width = 512
    decay: ShareBelowOne = 0.99
    patience: Count = 10

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("width", "heads"))

    def build(self) -> tokenizer.VisualTokenizer:
        from diptych.models.tokenizer import VisualTokenizer as Model

        return Model(**vars(self))
