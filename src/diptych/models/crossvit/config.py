"""Settings of CrossViT, and what was published of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from diptych.config.published import Published
from diptych.config.validation import (
    DepthOrNone,
    Dim,
    Longest,
    MLPDim,
    NumClassesOrNone,
    NumHeads,
    PatchSize,
    Pixels,
    ShareBelowOne,
    require_multiple,
    settings,
)

if TYPE_CHECKING:
    from diptych.models.crossvit import model as crossvit


@settings("model")
class CrossViTConfig:
    """Arguments of models.crossvit.CrossViT; the defaults are CrossViT-9."""

    image_sizes: tuple[Pixels, Pixels] = (240, 224)
    patch_sizes: tuple[PatchSize, PatchSize] = (12, 16)
    dims: tuple[Dim, Dim] = (128, 256)
    num_heads: tuple[NumHeads, NumHeads] = (4, 4)
    mlp_dims: tuple[MLPDim, MLPDim] = (384, 768)
    stages: Annotated[tuple[tuple[DepthOrNone, DepthOrNone, DepthOrNone], ...], Longest(64)] = (
        (1, 3, 0),
        (1, 3, 0),
        (1, 3, 0),
    )
    stem: bool = False
    num_classes: NumClassesOrNone = 1000
    dropout: ShareBelowOne = 0.0

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("image_sizes", "patch_sizes"), ("dims", "num_heads"))

    def build(self) -> crossvit.CrossViT:
        from diptych.models.crossvit.model import CrossViT as Model

        return Model(**vars(self))


# What was published, to stand beside our figures; none was measured here. "Not verified here": from the paper by memory; look it
# up before citing it. "As leaderboards list it": from public lists of results (wizwand.com), not from the paper itself.
PUBLISHED = Published(
    title="CrossViT: Cross-Attention Multi-Scale Vision Transformer (Chen, Fan and Panda, ICCV 2021)",
    code="github.com/IBM/CrossViT, commit 3f7ab77, Apache-2.0",
    model=("crossvit", "CrossViT"),
    parameters={"CrossViT-9": 8_553_296},
    results={"ImageNet top-1, CrossViT-9 / -15 / -18": "73.9 / 81.5 / 82.5 (paper)"},
    image_size=(240, 240),
)
