"""Settings of VisualBERT, and its published facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.config.published import Published
from diptych.config.validation import (
    Depth,
    Dim,
    FractionBelowOne,
    Length,
    MLPDim,
    NumHeads,
    VocabSize,
    require_multiple,
    settings,
)
from diptych.modules.input_embeddings import OWN, InputEmbeddings

if TYPE_CHECKING:
    from diptych.models.visualbert.model import VisualBERT


@settings("model")
class VisualBERTConfig:
    """Settings of VisualBERT. The defaults are BERT-base's."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    feature_dim: Dim = 2048  # of the detector's region features
    vocab_size: VocabSize = 30522
    text_length: Length = 512  # maximum number of tokens
    dropout: FractionBelowOne = 0.1

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("dim", "num_heads"))

    def build(self, embedders: InputEmbeddings = OWN) -> VisualBERT:
        from diptych.models.visualbert.model import VisualBERT

        return VisualBERT(self, embedders)


PUBLISHED = Published(
    title="VisualBERT (Li et al., 2019), the single-stream form that UNITER (Chen et al., ECCV 2020) shares",
    code="checked against transformers' VisualBertModel",
    model=("visualbert", "VisualBERT"),
    parameters={},
    results={},
    regions=36,
)
