"""Settings of ViLBERT, and its published facts."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from diptych.config.published import CheckpointFile, Published
from diptych.config.validation import (
    Depth,
    DepthOrZero,
    Dim,
    FractionBelowOne,
    Length,
    MaxItems,
    MLPDim,
    NumClasses,
    NumClassesOrZero,
    NumHeads,
    VocabSize,
    require_multiple,
    settings,
)
from diptych.modules.input_embeddings import OWN, InputEmbeddings

if TYPE_CHECKING:
    from diptych.models.vilbert.model import ViLBERT


@settings("model")
class ViLBERTConfig:
    """Settings of ViLBERT. The defaults are a BERT-base text stream and an image stream of six layers."""

    dim: Dim = 768
    depth: Depth = 12
    num_heads: NumHeads = 12
    mlp_dim: MLPDim = 3072
    image_dim: Dim = 1024
    image_depth: Depth = 6
    image_num_heads: NumHeads = 8
    image_mlp_dim: MLPDim = 1024
    coattention_dim: Dim = 1024  # of the co-attention layers, and of the pooled features that heads read
    coattention_num_heads: NumHeads = 8
    # Per co-attention layer: the number of text blocks and of image blocks before it.
    schedule: Annotated[tuple[tuple[DepthOrZero, DepthOrZero], ...], MaxItems(512)] = (
        (6, 0),
        (7, 1),
        (8, 2),
        (9, 3),
        (10, 4),
        (11, 5),
    )
    feature_dim: Dim = 2048  # of the detector's region features
    num_region_targets: NumClasses = 1601  # what is predicted of masked regions: the detector's classes or its features
    vocab_size: VocabSize = 30522
    text_length: Length = 512  # maximum number of tokens
    num_tasks: NumClassesOrZero = 0  # number of task tokens (12-in-1: 20); 0: none
    dropout: FractionBelowOne = 0.1

    def __post_init__(self) -> None:
        require_multiple(
            self,
            "model",
            ("dim", "num_heads"),
            ("image_dim", "image_num_heads"),
            ("coattention_dim", "coattention_num_heads"),
        )
        if any(text > self.depth or image > self.image_depth for text, image in self.schedule):
            depths = f"{self.depth} and {self.image_depth}"
            raise ValueError(
                f"model.schedule must stay within model.depth and model.image_depth, {depths}: got {self.schedule}"
            )
        if any(
            text > next_text or image > next_image for (text, image), (next_text, next_image) in pairwise(self.schedule)
        ):
            raise ValueError(f"model.schedule must not decrease: got {self.schedule}")

    def build(self, embedders: InputEmbeddings = OWN) -> ViLBERT:
        from diptych.models.vilbert.model import ViLBERT

        return ViLBERT(self, embedders)


VILBERT_FILES = "https://dl.fbaipublicfiles.com/vilbert-multi-task/"

PUBLISHED = Published(
    title=(
        "ViLBERT: Pretraining Task-Agnostic Visiolinguistic Representations (Lu et al., NeurIPS 2019); 12-in-1 (CVPR 2020)"
    ),
    code="github.com/facebookresearch/vilbert-multi-task, commit f22b84a, MIT",
    model=("vilbert", "ViLBERT"),
    parameters={"12-in-1, all heads": 268_028_859},
    results={
        "VQA v2 test-dev / test-std": "70.55 / 70.92 (ViLBERT paper, as leaderboards list it)",
        "Flickr30k, text to image R@1/5/10": (
            "58.2 / 84.9 / 91.5 (ViLBERT paper; R@1 as leaderboards list it, the others not verified here)"
        ),
    },
    regions=36,
    with_image_region=True,
    weights=(
        CheckpointFile("pretrained_model.bin", "pre-trained on Conceptual Captions", VILBERT_FILES),
        CheckpointFile("multi_task_model.bin", "12-in-1", VILBERT_FILES),
    ),
)
