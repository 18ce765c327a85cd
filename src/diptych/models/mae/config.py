"""Settings of MAE, and what was published of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.config.published import Published, Weights
from diptych.config.validation import (
    Cells,
    Depth,
    Dim,
    MLPDim,
    NumHeads,
    PatchSize,
    require_multiple,
    settings,
)

if TYPE_CHECKING:
    from diptych.models.mae import model as mae


@settings("model")
class MAEConfig:
    """Arguments of models.mae.MAE; the defaults are ViT-B/16."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    patch_size: PatchSize = 16
    grid: tuple[Cells, Cells] = (14, 14)
    decoder_dim: Dim = 512
    decoder_depth: Depth = 8
    decoder_num_heads: NumHeads = 16
    decoder_mlp_dim: MLPDim = 2048

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("dim", "num_heads"), ("decoder_dim", "decoder_num_heads"))
        for name in ("dim", "decoder_dim"):  # of sines and cosines, for rows and for columns
            if getattr(self, name) % 4:
                raise ValueError(f"model.{name} must be a multiple of 4: got {getattr(self, name)}")

    def build(self) -> mae.MAE:
        from diptych.models.mae.model import MAE as Model

        return Model(**vars(self))


# What was published, to stand beside our figures; none was measured here. "Not verified here": from the paper by memory; look it
# up before citing it. "As leaderboards list it": from public lists of results (wizwand.com), not from the paper itself.
PUBLISHED = Published(
    title="Masked Autoencoders Are Scalable Vision Learners (He et al., CVPR 2022)",
    code="github.com/facebookresearch/mae, commit efb2a80, CC-BY-NC 4.0",
    model=("mae", "MAE"),
    parameters={},
    results={},
    weights=(
        Weights("mae_pretrain_vit_base.pth", "the encoder alone", "https://dl.fbaipublicfiles.com/mae/pretrain/"),
    ),
)
