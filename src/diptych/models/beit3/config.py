"""Settings of BEiT3, and what was published of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from diptych.config.published import Published, Weights
from diptych.config.validation import (
    Cells,
    Count,
    Depth,
    Dim,
    Length,
    MLPDim,
    NumClassesOrNone,
    NumHeads,
    PatchSize,
    Place,
    Range,
    ShareBelowOne,
    VocabSize,
    require_at_most,
    require_multiple,
    settings,
)

if TYPE_CHECKING:
    from diptych.encoders import visual_tokenizer
    from diptych.models.beit3 import model as beit3


@settings("model")
class BEiT3Config:
    """Arguments of models.beit3.BEiT3; the defaults are the base model's. `mask`: the id of [MASK]."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    patch_size: PatchSize = 16
    grid: tuple[Cells, Cells] = (14, 14)
    vocab_size: VocabSize = 64010
    text_length: Length = 1022
    pooling: Literal["image", "both"] = "image"
    final_norm: bool = True
    num_classes: NumClassesOrNone = 0
    with_decoder: bool = False
    mask_token_id: Place = 64001
    drop_path: ShareBelowOne = 0.1

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("dim", "num_heads"))
        require_at_most(self, "model", ("mask_token_id", "vocab_size"), below=True)

    def build(self) -> beit3.BEiT3:
        from diptych.models.beit3.model import BEiT3 as Model

        return Model(**vars(self))


@settings("model")
class VisualTokenizerConfig:
    """Arguments of models.tokenizer.VisualTokenizer; the defaults are BEiT v2's base size. `features`: the teacher's width."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    patch_size: PatchSize = 16
    grid: tuple[Cells, Cells] = (14, 14)
    num_codes: Annotated[int, Range(2, 2**16)] = 8192
    code_dim: Dim = 32
    decoder_depth: Depth = 3
    feature_dim: Dim = 512
    decay: ShareBelowOne = 0.99
    patience: Count = 10

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("dim", "num_heads"))

    def build(self) -> visual_tokenizer.VisualTokenizer:
        from diptych.encoders.visual_tokenizer import VisualTokenizer as Model

        return Model(**vars(self))


# What was published, to stand beside our figures; none was measured here. "Not verified here": from the paper by memory; look it
# up before citing it. "As leaderboards list it": from public lists of results (wizwand.com), not from the paper itself.
BEIT3_FILES = "https://github.com/microsoft/unilm/tree/master/beit3#pretrained-models"

PUBLISHED = Published(
    title="Image as a Foreign Language: BEiT Pretraining for All Vision and Vision-Language Tasks (Wang et al., CVPR 2023)",
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
        Weights("beit3_base_patch16_480_vqa.pth", "VQA v2, base", BEIT3_FILES),
        Weights("beit3_base_patch16_224_nlvr2.pth", "NLVR2, base", BEIT3_FILES),
        Weights("beit3_base_patch16_384_coco_retrieval.pth", "retrieval, COCO, base", BEIT3_FILES),
        Weights("beit3_base_patch16_480_coco_captioning.pth", "captions, COCO, base", BEIT3_FILES),
        Weights("beit3_base_patch16_224_in1k.pth", "ImageNet-1k, base", BEIT3_FILES),
    ),
)
