"""Settings of ViT, and what was published of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from diptych.config.published import Published, Weights
from diptych.config.validation import (
    Activation,
    Cells,
    Depth,
    Dim,
    Epsilon,
    MLPDim,
    NumClassesOrNone,
    NumHeads,
    PatchSize,
    Range,
    ShareBelowOne,
    require_multiple,
    settings,
)

if TYPE_CHECKING:
    from diptych.models.vit import model as vit


@settings("model")
class ViTConfig:
    """Arguments of models.vit.ViT; the defaults are ViT-B/16."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    patch_size: PatchSize = 16
    grid: tuple[Cells, Cells] = (14, 14)
    num_classes: NumClassesOrNone = 1000
    representation: Annotated[int, Range(0, 2**16)] = 0  # width of a layer before the classifier; 0: none
    pooling: Literal["cls", "average"] = "cls"
    dropout: ShareBelowOne = 0.0
    activation: Activation = "gelu"
    eps: Epsilon = 1e-6

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("dim", "num_heads"))

    def build(self) -> vit.ViT:
        from diptych.models.vit.model import ViT as Model

        return Model(**vars(self))


# What was published, to stand beside our figures; none was measured here. "Not verified here": from the paper by memory; look it
# up before citing it. "As leaderboards list it": from public lists of results (wizwand.com), not from the paper itself.
PUBLISHED = Published(
    title="An Image is Worth 16x16 Words (Dosovitskiy et al., ICLR 2021)",
    code="github.com/google-research/vision_transformer (JAX); equality is checked against timm",
    model=("vit", "ViT"),
    parameters={"ViT-B/16 with 1,000 classes": 86_567_656},
    results={},
    weights=(Weights("model.safetensors", "ViT-B/16, ImageNet", "https://huggingface.co/google/vit-base-patch16-224"),),
)
