"""Settings of BEiT-3, and its published facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diptych.config.published import CheckpointFile, Published
from diptych.config.validation import (
    Depth,
    Dim,
    FractionBelowOne,
    Length,
    MLPDim,
    NumClassesOrZero,
    NumHeads,
    PatchesPerSide,
    PatchSize,
    TokenId,
    VocabSize,
    require_at_most,
    require_multiple,
    settings,
)
from diptych.modules.input_embeddings import OWN, InputEmbeddings

if TYPE_CHECKING:
    from diptych.models.beit3.model import BEiT3


@settings("model")
class BEiT3Config:
    """Settings of BEiT-3. The defaults are the base model's."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    patch_size: PatchSize = 16  # pixels
    grid: tuple[PatchesPerSide, PatchesPerSide] = (14, 14)  # rows and columns of positions, resized for other images
    vocab_size: VocabSize = 64010
    text_length: Length = 1022  # maximum number of tokens
    pooling: Literal["image", "both"] = "image"  # input of heads: pooled image class token (VQA), or both first tokens
    final_norm: bool = True  # False: the heads have a LayerNorm of their own (VQA, classification)
    num_classes: NumClassesOrZero = 0  # 0: no image classifier
    with_decoder: bool = False  # an LM head, for captions and masked words
    mask_token_id: TokenId = 64001  # [MASK]
    drop_path: FractionBelowOne = 0.1  # stochastic depth of the last block, growing linearly from 0

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("dim", "num_heads"))
        require_at_most(self, "model", ("mask_token_id", "vocab_size"), below=True)

    def build(self, embedders: InputEmbeddings = OWN) -> BEiT3:
        from diptych.models.beit3.model import BEiT3

        return BEiT3(self, embedders)


BEIT3_FILES = "https://github.com/microsoft/unilm/tree/master/beit3#pretrained-models"

PUBLISHED = Published(
    title=(
        "Image as a Foreign Language: BEiT Pretraining for All Vision and Vision-Language Tasks (Wang et al., CVPR 2023)"
    ),
    code="github.com/microsoft/unilm/tree/master/beit3, commit 768a3c8, MIT",
    model=("beit3", "BEiT3"),
    parameters={
        "base, VQA at 224 pixels": 227_569_977,
        "base, NLVR2": 225_719_810,
        "base, retrieval at 224 pixels": 222_167_041,
        "base, captions at 224 pixels": 270_211_082,
        "base, ImageNet-1k": 221_754_856,
    },
    results={
        "VQA v2 test-dev, base / base in domain": "77.65 / 78.46 (README of the official code)",
        "NLVR2 dev / test-P, base": "83.6 / 84.4 (README)",
        "COCO captions CIDEr, base": "133.6 (README)",
        "COCO fine-tuned, image to text / text to image R@1, base": "79.1 / 61.4 (README)",
        "ImageNet top-1, base": "85.4 (README)",
    },
    weights=(
        CheckpointFile("beit3_base_patch16_480_vqa.pth", "VQA v2, base", BEIT3_FILES),
        CheckpointFile("beit3_base_patch16_224_nlvr2.pth", "NLVR2, base", BEIT3_FILES),
        CheckpointFile("beit3_base_patch16_384_coco_retrieval.pth", "retrieval, COCO, base", BEIT3_FILES),
        CheckpointFile("beit3_base_patch16_480_coco_captioning.pth", "captions, COCO, base", BEIT3_FILES),
        CheckpointFile("beit3_base_patch16_224_in1k.pth", "ImageNet-1k, base", BEIT3_FILES),
    ),
)
