"""Settings of BLIP, and its published facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diptych.config.published import CheckpointFile, Published
from diptych.config.validation import (
    Activation,
    Depth,
    DepthOrZero,
    Dim,
    Epsilon,
    FractionBelowOne,
    Length,
    MLPDim,
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
    from diptych.models.blip.model import BLIP


LABEL_SMOOTHING = 0.1
"""Label smoothing of the losses of captions and answers (official code; not in the paper)."""


@settings("model")
class BLIPConfig:
    """Settings of BLIP. The defaults are those of pre-training with ViT-B."""

    image_dim: Dim = 768
    image_depth: Depth = 12
    image_num_heads: NumHeads = 12
    image_mlp_dim: MLPDim = 3072
    patch_size: PatchSize = 16  # pixels
    grid: tuple[PatchesPerSide, PatchesPerSide] = (14, 14)  # rows and columns of positions, resized for other images
    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    vocab_size: VocabSize = 30524
    text_length: Length = 512  # maximum number of tokens
    bos_token_id: TokenId = 30522  # [DEC], the first token of a decoded text
    enc_token_id: TokenId = 30523  # [ENC], the first token of an image-grounded text
    embed_dim: Dim = 256  # of the joint space of ITC
    # "pretraining": encoder and decoder, which share all but self-attention. "retrieval": no decoder. "caption": no
    # encoder. "vqa": both, sharing nothing. "nlvr2": an encoder that cross-attends to two images.
    variant: Literal["pretraining", "retrieval", "caption", "vqa", "nlvr2"] = "pretraining"
    average_image_attention: DepthOrZero = 6  # NLVR2: first layers, averaging attention to two images; others merge it
    dropout: FractionBelowOne = 0.1
    image_activation: Activation = "gelu"
    image_eps: Epsilon = 1e-6
    activation: Activation = "gelu"
    eps: Epsilon = 1e-12

    def __post_init__(self) -> None:
        require_multiple(self, "model", ("dim", "num_heads"), ("image_dim", "image_num_heads"))
        require_at_most(self, "model", ("bos_token_id", "vocab_size"), ("enc_token_id", "vocab_size"), below=True)

    def build(self, embedders: InputEmbeddings = OWN) -> BLIP:
        from diptych.models.blip.model import BLIP

        return BLIP(self, embedders)


BLIP_FILES = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/"

PUBLISHED = Published(
    title="BLIP: Bootstrapping Language-Image Pre-training (Li et al., ICML 2022)",
    code="github.com/salesforce/BLIP, commit 056a169, BSD-3-Clause",
    model=("blip", "BLIP"),
    parameters={
        "pre-training (trained: 252,441,919)": 475_892_799,
        "retrieval at 224 pixels (trained: 223,452,419)": 446_903_299,
        "VQA at 224 pixels": 360_938_300,
        "captions at 224 pixels": 223_679_804,
        "NLVR2 at 224 pixels": 259_080_194,
    },
    results={
        "VQA v2 test-dev / test-std, ViT-B CapFilt-L": "78.25 / 78.32 (paper; not verified here)",
        "COCO captions BLEU@4 / CIDEr, ViT-B CapFilt-L": "39.7 / 133.3 (paper; not verified here)",
        "COCO fine-tuned, image to text / text to image R@1, ViT-B CapFilt-L": "81.2 / 64.1 (paper; not verified here)",
    },
    weights=(
        CheckpointFile("model_base_14M.pth", "pre-trained, 14M", BLIP_FILES),
        CheckpointFile("model_base.pth", "pre-trained, 129M", BLIP_FILES),
        CheckpointFile("model_base_capfilt_large.pth", "pre-trained, 129M, CapFilt-L", BLIP_FILES),
        CheckpointFile("model_base_caption_capfilt_large.pth", "captions, CapFilt-L", BLIP_FILES),
        CheckpointFile("model_base_vqa_capfilt_large.pth", "VQA v2, CapFilt-L", BLIP_FILES),
        CheckpointFile("model_base_nlvr.pth", "NLVR2", BLIP_FILES),
        CheckpointFile("model_base_retrieval_coco.pth", "retrieval, COCO", BLIP_FILES),
        CheckpointFile("model_base_retrieval_flickr.pth", "retrieval, Flickr30k", BLIP_FILES),
    ),
)
