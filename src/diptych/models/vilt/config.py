"""Settings of ViLT, and its published facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.config.published import CheckpointFile, Published
from diptych.config.validation import (
    Activation,
    Depth,
    Dim,
    Epsilon,
    FractionBelowOne,
    Length,
    MLPDim,
    NumHeads,
    NumImages,
    PatchesPerSide,
    PatchSize,
    VocabSize,
    require_multiple,
    settings,
)
from diptych.modules.input_embeddings import OWN, InputEmbeddings

if TYPE_CHECKING:
    from diptych.models.vilt.model import ViLT


@settings("model")
class ViLTConfig:
    """Settings of ViLT. The defaults are ViLT-B/32."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    patch_size: PatchSize = 32  # pixels
    grid: tuple[PatchesPerSide, PatchesPerSide] = (12, 12)  # rows and columns of positions, resized for other images
    vocab_size: VocabSize = 30522
    text_length: Length = 40  # maximum number of tokens
    num_images: NumImages = 1  # of a sample, each with a modality embedding of its own (NLVR2: 2)
    dropout: FractionBelowOne = 0.1
    activation: Activation = "gelu"
    eps: Epsilon = 1e-6  # of the transformer's LayerNorms
    text_eps: Epsilon = 1e-12  # of the LayerNorms of the text embedding and of the MLM head

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("dim", "num_heads"))

    def build(self, embedders: InputEmbeddings = OWN) -> ViLT:
        from diptych.models.vilt.model import ViLT

        return ViLT(self, embedders)


VILT_FILES = "https://github.com/dandelin/ViLT#download-pretrained-weights"

PUBLISHED = Published(
    title="ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision (Kim et al., ICML 2021)",
    code="github.com/dandelin/ViLT, commit 762fd39, Apache-2.0",
    model=("vilt", "ViLT"),
    parameters={
        "pre-training (masked words, matching)": 135_660_092,
        "VQA, 3,129 answers": 117_588_537,
        "NLVR2": 113_962_754,
        "retrieval": 111_597_315,
    },
    results={
        "VQA v2 test-dev": "71.32 (EVAL.md of the official code)",
        "NLVR2 dev / test-P": "75.65 / 76.52 (EVAL.md)",
        "COCO fine-tuned, text to image R@1/5/10": "42.99 / 72.84 / 83.07 (EVAL.md)",
        "COCO fine-tuned, image to text R@1/5/10": "61.62 / 86.32 / 92.70 (EVAL.md)",
    },
    image_size=(384, 384),
    weights=(
        CheckpointFile("vilt_200k_mlm_itm.ckpt", "pre-trained", VILT_FILES),
        CheckpointFile("vilt_vqa.ckpt", "VQA v2", VILT_FILES),
        CheckpointFile("vilt_nlvr2.ckpt", "NLVR2", VILT_FILES),
        CheckpointFile("vilt_irtr_coco.ckpt", "retrieval, COCO", VILT_FILES),
        CheckpointFile("vilt_irtr_f30k.ckpt", "retrieval, Flickr30k", VILT_FILES),
    ),
)
