"""Models whose sides never fuse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych.models import clip, scan, vsepp


@dataclass(frozen=True)
class CLIP:
    """Arguments of models.clip.CLIP; the defaults are ViT-B/32."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    patch: int = 32
    grid: tuple[int, int] = (7, 7)
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    text_hidden: int = 2048
    vocabulary: int = 49408
    text_length: int = 77
    joint: int = 512
    activation: str = "quick_gelu"
    text_activation: str = ""  # empty: the image tower's
    eps: float = 1e-5
    text_eps: float = 1e-5

    def build(self) -> clip.CLIP:
        from diptych.models.clip import CLIP as Model

        return Model(**vars(self))


@dataclass(frozen=True)
class VSEpp:
    """Arguments of models.vsepp.VSEpp; the defaults are those of its official code."""

    features: int = 2048
    width: int = 1024
    vocabulary: int = 11353
    word_width: int = 300
    depth: int = 1
    measure: str = "cosine"

    def build(self) -> vsepp.VSEpp:
        from diptych.models.vsepp import VSEpp as Model

        return Model(**vars(self))


@dataclass(frozen=True)
class SCAN:
    """Arguments of models.scan.SCAN; the defaults are t-i LSE on Flickr30k."""

    features: int = 2048
    width: int = 1024
    vocabulary: int = 8481
    word_width: int = 300
    depth: int = 1
    bidirectional: bool = True
    asking: str = "text"
    norm: str = "clipped_l2"
    aggregate: str = "logsumexp"
    sharpness: float = 9.0
    peak: float = 6.0

    def build(self) -> scan.SCAN:
        from diptych.models.scan import SCAN as Model

        return Model(**vars(self))
