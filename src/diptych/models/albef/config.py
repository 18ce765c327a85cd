"""Settings of ALBEF, and its published facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.config.published import CheckpointFile, Published
from diptych.config.validation import (
    Depth,
    DepthOrZero,
    Dim,
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
    from diptych.models.albef.model import ALBEF


@settings("model")
class ALBEFConfig:
    """Settings of ALBEF. The defaults are those of pre-training at 256 pixels."""

    image_dim: Dim = 768
    image_depth: Depth = 12
    image_num_heads: NumHeads = 12
    image_mlp_dim: MLPDim = 3072
    patch_size: PatchSize = 16  # pixels
    grid: tuple[PatchesPerSide, PatchesPerSide] = (16, 16)  # rows and columns of positions, resized for other images
    dim: Dim = 768
    text_depth: Depth = 6  # layers of the text encoder
    fusion_depth: Depth = 6  # layers of the multimodal encoder, which cross-attend to the image
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    vocab_size: VocabSize = 30522
    text_length: Length = 512  # maximum number of tokens
    embed_dim: Dim = 256  # of the joint space of ITC
    num_images: NumImages = 1  # that one fusion reads (NLVR2: 2)
    decoder_depth: DepthOrZero = 0  # layers of the answer decoder (with its own embedding and LM head); 0: none
    dropout: FractionBelowOne = 0.1

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("dim", "num_heads"), ("image_dim", "image_num_heads"))

    def build(self, embedders: InputEmbeddings = OWN) -> ALBEF:
        from diptych.models.albef.model import ALBEF

        return ALBEF(self, embedders)


ALBEF_FILES = "https://storage.googleapis.com/sfr-pcl-data-research/ALBEF/"

PUBLISHED = Published(
    title=(
        "Align before Fuse: Vision and Language Representation Learning with Momentum Distillation "
        "(Li et al., NeurIPS 2021)"
    ),
    code="github.com/salesforce/ALBEF, commit b9727e4, BSD-3-Clause",
    model=("albef", "ALBEF"),
    parameters={
        "pre-training, trained (with the momentum model 419,873,911)": 209_937_725,
        "VQA at 224 pixels, trained": 290_044_218,
        "NLVR2 at 224 pixels, trained": 259_089_410,
    },
    results={
        "VQA v2 test-dev / test-std, 14M": "75.84 / 76.04 (paper; not verified here)",
        "NLVR2 dev / test-P, 14M": "82.55 / 83.14 (paper; not verified here)",
        "SNLI-VE val / test, 14M": "80.80 / 80.91 (paper; not verified here)",
        "Flickr30k fine-tuned, image to text / text to image R@1, 14M": "95.9 / 85.6 (paper; not verified here)",
    },
    image_size=(256, 256),
    weights=(
        CheckpointFile("ALBEF.pth", "pre-trained, 14M", ALBEF_FILES),
        CheckpointFile("vqa.pth", "VQA v2", ALBEF_FILES),
        CheckpointFile("mscoco.pth", "retrieval, COCO", ALBEF_FILES),
        CheckpointFile("refcoco.pth", "RefCOCO+, a retrieval model", ALBEF_FILES),
        CheckpointFile("pretrain_model_nlvr.pth", "text assignment for NLVR2", ALBEF_FILES),
    ),
)
