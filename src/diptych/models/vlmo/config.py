"""Settings of VLMo, and its published facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from diptych.config.published import Published
from diptych.config.validation import (
    Depth,
    DepthOrZero,
    Dim,
    Fraction,
    FractionBelowOne,
    Length,
    MLPDim,
    NumHeads,
    NumImages,
    PatchesPerSide,
    PatchSize,
    Range,
    VocabSize,
    require_at_most,
    require_multiple,
    settings,
)
from diptych.modules.input_embeddings import OWN, InputEmbeddings

if TYPE_CHECKING:
    from diptych.models.vlmo.model import VLMo


@settings("model")
class VLMoConfig:
    """Settings of VLMo. The defaults are VLMo-Base."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    vl_start_layer: DepthOrZero = 10  # first block with a vision-language expert; equal to depth: none (before pairs)
    patch_size: PatchSize = 16  # pixels
    grid: tuple[PatchesPerSide, PatchesPerSide] = (14, 14)  # rows and columns of the position grid
    vocab_size: VocabSize = 30522
    text_length: Length = 196  # maximum number of tokens; of relative positions the largest distance with a bias
    num_images: NumImages = 1  # of a sample, each with a modality embedding of its own (NLVR2: 2)
    relative_position: bool = True  # relative position biases (base, large); False: position embeddings (base-plus)
    layer_scale: Fraction = 0.1  # initial value of LayerScale; 0: no LayerScale (base-plus)
    num_itc_branches: Annotated[int, Range(1, 2)] = 2  # 1: ITC on modality experts; 2: on vision-language experts too
    drop_path: FractionBelowOne = 0.1  # stochastic depth of the last block, growing from 0; dropout of text embeddings
    with_mask_token: bool = False  # for masked patches (masked_codes*); no official checkpoint has it

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("dim", "num_heads"))
        require_at_most(self, "model", ("vl_start_layer", "depth"))

    def build(self, embedders: InputEmbeddings = OWN) -> VLMo:
        from diptych.models.vlmo.model import VLMo

        return VLMo(self, embedders)


PUBLISHED = Published(
    title="VLMo: Unified Vision-Language Pre-Training with Mixture-of-Modality-Experts (Bao et al., NeurIPS 2022)",
    code="github.com/microsoft/unilm/tree/master/vlmo, commit 768a3c8, MIT",
    model=("vlmo", "VLMo"),
    parameters={"base, pre-training on pairs": 202_414_750, "base, VQA at 224 pixels": 181_983_897},
    results={
        "VQA v2 test-dev, base / base plus / large": "76.6 / 78.5 / 79.9 (README of the official code)",
        "NLVR2 test-P": "83.3 / 85.1 / 86.9 (README)",
        "COCO fine-tuned, image to text / text to image R@1, base": "74.8 / 57.2 (README)",
    },
)
