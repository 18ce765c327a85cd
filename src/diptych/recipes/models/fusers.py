"""Models in which text and image meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych.models import albef, vilbert, vilt, visualbert, vlmo


@dataclass(frozen=True)
class ViLBERT:
    """Arguments of models.vilbert.ViLBERT; the defaults are those of BERT-base and six image layers."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    image_width: int = 1024
    image_depth: int = 6
    image_heads: int = 8
    image_hidden: int = 1024
    meeting_width: int = 1024
    meeting_heads: int = 8
    schedule: tuple[tuple[int, int], ...] = ((6, 0), (7, 1), (8, 2), (9, 3), (10, 4), (11, 5))
    features: int = 2048
    region_targets: int = 1601
    vocabulary: int = 30522
    text_length: int = 512
    tasks: int = 0
    dropout: float = 0.1

    def build(self) -> vilbert.ViLBERT:
        from diptych.models.vilbert import ViLBERT as Model

        return Model(**vars(self))


@dataclass(frozen=True)
class VisualBERT:
    """Arguments of models.visualbert.VisualBERT; the defaults are BERT-base's."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    features: int = 2048
    vocabulary: int = 30522
    text_length: int = 512
    dropout: float = 0.1

    def build(self) -> visualbert.VisualBERT:
        from diptych.models.visualbert import VisualBERT as Model

        return Model(**vars(self))


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
    activation: str = "gelu"
    eps: float = 1e-6
    text_eps: float = 1e-12

    def build(self) -> vilt.ViLT:
        from diptych.models.vilt import ViLT as Model

        return Model(**vars(self))


@dataclass(frozen=True)
class ALBEF:
    """Arguments of models.albef.ALBEF; the defaults are those of pre-training at 256 pixels."""

    image_width: int = 768
    image_depth: int = 12
    image_heads: int = 12
    image_hidden: int = 3072
    patch: int = 16
    grid: tuple[int, int] = (16, 16)
    width: int = 768
    text_depth: int = 6
    fusion_depth: int = 6
    heads: int = 12
    hidden: int = 3072
    vocabulary: int = 30522
    text_length: int = 512
    joint: int = 256
    images: int = 1
    decoder_depth: int = 0
    dropout: float = 0.1

    def build(self) -> albef.ALBEF:
        from diptych.models.albef import ALBEF as Model

        return Model(**vars(self))


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
    hides: bool = False

    def build(self) -> vlmo.VLMo:
        from diptych.models.vlmo import VLMo as Model

        return Model(**vars(self))
