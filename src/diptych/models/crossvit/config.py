"""Settings of CrossViT, and its published facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from diptych.config.published import Published
from diptych.config.validation import (
    DepthOrZero,
    Dim,
    FractionBelowOne,
    MaxItems,
    MLPDim,
    NumClassesOrZero,
    NumHeads,
    PatchSize,
    Pixels,
    require_multiple,
    settings,
)
from diptych.modules.input_embeddings import OWN, InputEmbeddings

if TYPE_CHECKING:
    from diptych.models.crossvit.model import CrossViT


STEM_PATCH_SIZES = (12, 16)
"""The patch sizes for which the strides of a convolutional stem are known (`modules.embeddings.STRIDES`)."""


@settings("model")
class CrossViTConfig:
    """Settings of CrossViT; the defaults are CrossViT-9.

    In pairs the small-patch branch comes first, then the large-patch branch.
    """

    image_sizes: tuple[Pixels, Pixels] = (240, 224)  # side of the square image that each branch reads, in pixels
    patch_sizes: tuple[PatchSize, PatchSize] = (12, 16)
    dims: tuple[Dim, Dim] = (128, 256)
    num_heads: tuple[NumHeads, NumHeads] = (4, 4)
    mlp_dims: tuple[MLPDim, MLPDim] = (384, 768)
    # Per stage: blocks of the small branch, of the large branch, and of the cross-attention between them. 0 of the
    # latter is one block too: the official code only names its weights otherwise.
    stages: Annotated[tuple[tuple[DepthOrZero, DepthOrZero, DepthOrZero], ...], MaxItems(64)] = (
        (1, 3, 0),
        (1, 3, 0),
        (1, 3, 0),
    )
    stem: bool = False  # embed patches by three convolutions (the models marked with a dagger)
    num_classes: NumClassesOrZero = 1000
    dropout: FractionBelowOne = 0.0

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("image_sizes", "patch_sizes"), ("dims", "num_heads"))
        if self.stem and not set(STEM_PATCH_SIZES).issuperset(self.patch_sizes):
            sizes = " or ".join(map(str, STEM_PATCH_SIZES))
            raise ValueError(f"model.patch_sizes must be {sizes} with model.stem: got {self.patch_sizes}")
        if self.stem and any(dim % 4 for dim in self.dims):
            raise ValueError(f"model.dims must be multiples of 4 with model.stem: got {self.dims}")

    def build(self, embedders: InputEmbeddings = OWN) -> CrossViT:
        from diptych.models.crossvit.model import CrossViT

        return CrossViT(self, embedders)


PUBLISHED = Published(
    title="CrossViT: Cross-Attention Multi-Scale Vision Transformer (Chen, Fan and Panda, ICCV 2021)",
    code="github.com/IBM/CrossViT, commit 3f7ab77, Apache-2.0",
    model=("crossvit", "CrossViT"),
    parameters={"CrossViT-9": 8_553_296},
    results={"ImageNet top-1, CrossViT-9 / -15 / -18": "73.9 / 81.5 / 82.5 (paper)"},
    image_size=(240, 240),
)
