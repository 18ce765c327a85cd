"""Models of images alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych.models import crossvit, mae, tokenizer, vit


@dataclass(frozen=True)
class ViT:
    """Arguments of models.vit.ViT; the defaults are ViT-B/16."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    patch: int = 16
    grid: tuple[int, int] = (14, 14)
    classes: int = 1000
    representation: int = 0
    pooling: str = "cls"
    dropout: float = 0.0
    activation: str = "gelu"
    eps: float = 1e-6

    def build(self) -> vit.ViT:
        from diptych.models.vit import ViT as Model

        return Model(**vars(self))


@dataclass(frozen=True)
class CrossViT:
    """Arguments of models.crossvit.CrossViT; the defaults are CrossViT-9."""

    sizes: tuple[int, int] = (240, 224)
    patches: tuple[int, int] = (12, 16)
    widths: tuple[int, int] = (128, 256)
    heads: tuple[int, int] = (4, 4)
    hidden: tuple[int, int] = (384, 768)
    stages: tuple[tuple[int, int, int], ...] = ((1, 3, 0), (1, 3, 0), (1, 3, 0))
    stem: bool = False
    classes: int = 1000
    dropout: float = 0.0

    def build(self) -> crossvit.CrossViT:
        from diptych.models.crossvit import CrossViT as Model

        return Model(**vars(self))


@dataclass(frozen=True)
class MAE:
    """Arguments of models.mae.MAE; the defaults are ViT-B/16."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    patch: int = 16
    grid: tuple[int, int] = (14, 14)
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    decoder_hidden: int = 2048

    def build(self) -> mae.MAE:
        from diptych.models.mae import MAE as Model

        return Model(**vars(self))


@dataclass(frozen=True)
class VisualTokenizer:
    """Arguments of models.tokenizer.VisualTokenizer; the defaults are BEiT v2's base size. `features`: the teacher's width."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    patch: int = 16
    grid: tuple[int, int] = (14, 14)
    codes: int = 8192
    code_width: int = 32
    decoder_depth: int = 3
    features: int = 512
    decay: float = 0.99
    patience: int = 10

    def build(self) -> tokenizer.VisualTokenizer:
        from diptych.models.tokenizer import VisualTokenizer as Model

        return Model(**vars(self))
