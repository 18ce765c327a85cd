"""Settings of CoCa, and its published facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from diptych.config.published import CheckpointFile, Published
from diptych.config.validation import (
    Activation,
    Depth,
    Dim,
    Length,
    MLPDim,
    NumHeads,
    PatchesPerSide,
    PatchSize,
    Range,
    TokenId,
    VocabSize,
    require_at_most,
    require_multiple,
    settings,
)
from diptych.modules.input_embeddings import OWN, InputEmbeddings

if TYPE_CHECKING:
    from diptych.models.coca.model import CoCa


@settings("model")
class CoCaConfig:
    """Settings of CoCa. The defaults are open_clip's ViT-B/32."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    patch_size: PatchSize = 32  # pixels
    grid: tuple[PatchesPerSide, PatchesPerSide] = (7, 7)  # rows and columns of positions, resized for other images
    num_queries: Annotated[int, Range(1, 4096)] = 256  # of the attentional pooler
    pool_num_heads: NumHeads = 8
    text_dim: Dim = 512
    text_depth: Depth = 12  # layers of the unimodal text decoder
    text_num_heads: NumHeads = 8
    text_mlp_dim: MLPDim = 2048
    vocab_size: VocabSize = 49408
    text_length: Length = 76  # maximum number of tokens, without the [CLS] that the model appends
    decoder_depth: Depth = 12  # layers of the multimodal text decoder
    decoder_num_heads: NumHeads = 8
    decoder_mlp_dim: MLPDim = 2048
    embed_dim: Dim = 512  # of the joint space of ITC
    activation: Activation = "gelu"
    pad_token_id: TokenId = 0  # which the [CLS] does not attend to

    def __post_init__(self) -> None:
        require_multiple(
            self,
            "model",
            ("dim", "num_heads"),
            ("text_dim", "text_num_heads"),
            ("text_dim", "decoder_num_heads"),
            ("text_dim", "pool_num_heads"),
        )
        require_at_most(self, "model", ("pad_token_id", "vocab_size"), below=True)

    def build(self, embedders: InputEmbeddings = OWN) -> CoCa:
        from diptych.models.coca.model import CoCa

        return CoCa(self, embedders)


PUBLISHED = Published(
    title="CoCa: Contrastive Captioners are Image-Text Foundation Models (Yu et al., TMLR 2022)",
    code="not released; equality is checked against open_clip 3.3.0, whose models are of their own training",
    model=("coca", "CoCa"),
    parameters={"open_clip coca_ViT-B-32": 253_560_065},
    results={
        "ImageNet zero-shot / fine-tuned, 2.1 B": "86.3 / 91.0 (paper; not verified here)",
        "COCO captions CIDEr, 2.1 B": "143.6 (paper; not verified here)",
    },
    weights=(
        CheckpointFile(
            "open_clip_pytorch_model.bin",
            "coca_ViT-B-32, LAION-2B (open_clip's own training)",
            "https://huggingface.co/laion/CoCa-ViT-B-32-laion2B-s13B-b90k",
        ),
    ),
)
