"""Settings of the visual tokenizer (BEiT v2's VQ-KD), apart from the model so that recipes import no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from diptych.config.validation import (
    Count,
    Depth,
    Dim,
    FractionBelowOne,
    MLPDim,
    NumHeads,
    PatchesPerSide,
    PatchSize,
    Range,
    require_multiple,
    settings,
)
from diptych.modules.input_embeddings import OWN, InputEmbeddings

if TYPE_CHECKING:
    from diptych.encoders.visual_tokenizer import VisualTokenizer


@settings("model")
class VisualTokenizerConfig:
    """Settings of a visual tokenizer. The defaults are BEiT v2's base size with its decoder of three blocks."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    patch_size: PatchSize = 16  # pixels
    grid: tuple[PatchesPerSide, PatchesPerSide] = (14, 14)  # rows and columns of positions, resized for other images
    num_codes: Annotated[int, Range(2, 2**16)] = 8192  # in the codebook
    code_dim: Dim = 32
    decoder_depth: Depth = 3
    feature_dim: Dim = 512  # of the teacher's features
    decay: FractionBelowOne = 0.99  # of the moving averages that the codes are
    patience: Count = 10  # steps without use after which a code is replaced

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("dim", "num_heads"))

    def build(self, embedders: InputEmbeddings = OWN) -> VisualTokenizer:
        from diptych.encoders.visual_tokenizer import VisualTokenizer

        return VisualTokenizer(self, embedders)
