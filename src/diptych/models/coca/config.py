"""Settings of CoCa, and what was published of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from diptych.config.published import Published, Weights
from diptych.config.validation import (
    Activation,
    Cells,
    Depth,
    Dim,
    Length,
    MLPDim,
    NumHeads,
    PatchSize,
    Place,
    Range,
    VocabSize,
    require_at_most,
    require_multiple,
    settings,
)

if TYPE_CHECKING:
    from diptych.models.coca import model as coca


@settings("model")
class CoCaConfig:
    """Arguments of models.coca.CoCa; the defaults are open_clip's ViT-B/32."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    patch_size: PatchSize = 32
    grid: tuple[Cells, Cells] = (7, 7)
    num_queries: Annotated[int, Range(1, 4096)] = 256
    pool_num_heads: NumHeads = 8
    text_dim: Dim = 512
    text_depth: Depth = 12
    text_num_heads: NumHeads = 8
    text_mlp_dim: MLPDim = 2048
    vocab_size: VocabSize = 49408
    text_length: Length = 76
    decoder_depth: Depth = 12
    decoder_num_heads: NumHeads = 8
    decoder_mlp_dim: MLPDim = 2048
    embed_dim: Dim = 512
    activation: Activation = "gelu"
    pad_token_id: Place = 0

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

    def build(self) -> coca.CoCa:
        from diptych.models.coca.model import CoCa as Model

        return Model(**vars(self))


# What was published, to stand beside our figures; none was measured here. "Not verified here": from the paper by memory; look it
# up before citing it. "As leaderboards list it": from public lists of results (wizwand.com), not from the paper itself.
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
        Weights(
            "open_clip_pytorch_model.bin",
            "coca_ViT-B-32, LAION-2B (open_clip's own training)",
            "https://huggingface.co/laion/CoCa-ViT-B-32-laion2B-s13B-b90k",
        ),
    ),
)
