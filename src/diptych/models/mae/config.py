"""Settings of MAE, and its published facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.config.published import CheckpointFile, Published
from diptych.config.validation import (
    Depth,
    Dim,
    MLPDim,
    NumHeads,
    PatchesPerSide,
    PatchSize,
    require_multiple,
    settings,
)
from diptych.modules.input_embeddings import OWN, InputEmbeddings

if TYPE_CHECKING:
    from diptych.models.mae.model import MAE


@settings("model")
class MAEConfig:
    """Settings of MAE. The defaults are ViT-B/16 with the published decoder of 8 blocks of width 512."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    patch_size: PatchSize = 16  # pixels
    grid: tuple[PatchesPerSide, PatchesPerSide] = (14, 14)  # rows and columns of positions, resized for other images
    decoder_dim: Dim = 512
    decoder_depth: Depth = 8
    decoder_num_heads: NumHeads = 16
    decoder_mlp_dim: MLPDim = 2048

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("dim", "num_heads"), ("decoder_dim", "decoder_num_heads"))
        for name in ("dim", "decoder_dim"):  # of sines and cosines, for rows and for columns
            if getattr(self, name) % 4:
                raise ValueError(f"model.{name} must be a multiple of 4: got {getattr(self, name)}")

    def build(self, embedders: InputEmbeddings = OWN) -> MAE:
        from diptych.models.mae.model import MAE

        return MAE(self, embedders)


PUBLISHED = Published(
    title="Masked Autoencoders Are Scalable Vision Learners (He et al., CVPR 2022)",
    code="github.com/facebookresearch/mae, commit efb2a80, CC-BY-NC 4.0",
    model=("mae", "MAE"),
    parameters={},
    results={},
    weights=(
        CheckpointFile("mae_pretrain_vit_base.pth", "encoder only", "https://dl.fbaipublicfiles.com/mae/pretrain/"),
    ),
)
