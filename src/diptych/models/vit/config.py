"""Settings of ViT, and its published facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from diptych.config.published import CheckpointFile, Published
from diptych.config.validation import (
    Activation,
    Depth,
    Dim,
    Epsilon,
    FractionBelowOne,
    MLPDim,
    NumClassesOrZero,
    NumHeads,
    PatchesPerSide,
    PatchSize,
    Range,
    require_multiple,
    settings,
)
from diptych.modules.input_embeddings import OWN, InputEmbeddings

if TYPE_CHECKING:
    from diptych.models.vit.model import ViT


@settings("model")
class ViTConfig:
    """Settings of a ViT. The defaults are ViT-B/16 with the 1,000 classes of ImageNet-1k."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    patch_size: PatchSize = 16  # pixels
    grid: tuple[PatchesPerSide, PatchesPerSide] = (14, 14)  # rows and columns of positions, resized for other images
    num_classes: NumClassesOrZero = 1000  # 0: no classifier
    representation: Annotated[int, Range(0, 2**16)] = 0  # width of a hidden layer before the classifier; 0: none
    pooling: Literal["cls", "average"] = "cls"  # what the classifier reads: the class token, or the mean of the patches
    dropout: FractionBelowOne = 0.0
    activation: Activation = "gelu"
    eps: Epsilon = 1e-6  # of every LayerNorm

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("dim", "num_heads"))

    def build(self, embedders: InputEmbeddings = OWN) -> ViT:
        from diptych.models.vit.model import ViT

        return ViT(self, embedders)


PUBLISHED = Published(
    title="An Image is Worth 16x16 Words (Dosovitskiy et al., ICLR 2021)",
    code="github.com/google-research/vision_transformer (JAX); equality is checked against timm",
    model=("vit", "ViT"),
    parameters={"ViT-B/16 with 1,000 classes": 86_567_656},
    results={},
    weights=(
        CheckpointFile("model.safetensors", "ViT-B/16, ImageNet", "https://huggingface.co/google/vit-base-patch16-224"),
    ),
)
