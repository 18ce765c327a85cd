"""Models whose sides never fuse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from diptych.ranges import (
    Activation,
    Cells,
    Depth,
    Epsilon,
    Heads,
    Hidden,
    Length,
    Patch,
    Range,
    Vocabulary,
    Width,
    require_multiple,
    settings,
)

if TYPE_CHECKING:
    from diptych.models import clip, scan, vsepp


@settings("model")
class CLIP:
    """Arguments of models.clip.CLIP; the defaults are ViT-B/32."""

    width: Width = 768
    depth: Depth = 12
    heads: Heads = 12
    hidden: Hidden = 3072
    patch: Patch = 32
    grid: tuple[Cells, Cells] = (7, 7)
    text_width: Width = 512
    text_depth: Depth = 12
    text_heads: Heads = 8
    text_hidden: Hidden = 2048
    vocabulary: Vocabulary = 49408
    text_length: Length = 77
    joint: Width = 512
    activation: Activation = "quick_gelu"
    text_activation: Literal["", Activation] = ""  # empty: the image tower's
    eps: Epsilon = 1e-5
    text_eps: Epsilon = 1e-5

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("width", "heads"), ("text_width", "text_heads"))

    def build(self) -> clip.CLIP:
        from diptych.models.clip import CLIP as Model

        return Model(**vars(self))


@settings("model")
class VSEpp:
    """Arguments of models.vsepp.VSEpp; the defaults are those of its official code."""

    features: Width = 2048
    width: Width = 1024
    vocabulary: Vocabulary = 11353
    word_width: Width = 300
    depth: Depth = 1
    measure: Literal["cosine", "order"] = "cosine"

    def build(self) -> vsepp.VSEpp:
        from diptych.models.vsepp import VSEpp as Model

        return Model(**vars(self))


@settings("model")
class SCAN:
    """Arguments of models.scan.SCAN; the defaults are t-i LSE on Flickr30k."""

    features: Width = 2048
    width: Width = 1024
    vocabulary: Vocabulary = 8481
    word_width: Width = 300
    depth: Depth = 1
    bidirectional: bool = True
    asking: Literal["text", "image"] = "text"
    norm: Literal["clipped_l2", "l2", "softmax", "clipped", "none"] = "clipped_l2"
    aggregate: Literal["logsumexp", "mean", "max", "sum"] = "logsumexp"
    sharpness: Annotated[float, Range(0, 1e3, "low")] = 9.0
    peak: Annotated[float, Range(0, 1e3, "low")] = 6.0

    def build(self) -> scan.SCAN:
        from diptych.models.scan import SCAN as Model

        return Model(**vars(self))
