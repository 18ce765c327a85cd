"""The models' sizes, as plain values. `build` imports torch, and not before."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych.models import vilt, vit, vlmo


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
    pooling: str = "cls"
    dropout: float = 0.0

    def build(self) -> vit.ViT:
        from diptych.models.vit import ViT as Model

        return Model(**asdict(self))


@dataclass(frozen=True)
class ViLT:
    """Arguments of models.vilt.ViLT; the defaults are ViLT-B/32."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    patch: int = 32
    grid: tuple[int, int] = (12, 12)
    vocabulary: int = 30522
    text_length: int = 40
    images: int = 1
    dropout: float = 0.1

    def build(self) -> vilt.ViLT:
        from diptych.models.vilt import ViLT as Model

        return Model(**asdict(self))


@dataclass(frozen=True)
class VLMo:
    """Arguments of models.vlmo.VLMo; the defaults are VLMo-Base."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    together: int = 10
    patch: int = 16
    grid: tuple[int, int] = (14, 14)
    vocabulary: int = 30522
    text_length: int = 196
    images: int = 1
    relative: bool = True
    scale: float = 0.1
    readouts: int = 2
    drop: float = 0.1

    def build(self) -> vlmo.VLMo:
        from diptych.models.vlmo import VLMo as Model

        return Model(**asdict(self))
