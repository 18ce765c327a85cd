"""Settings of SCAN, and its published facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from diptych.config.published import Published
from diptych.config.validation import (
    Depth,
    Dim,
    Range,
    VocabSize,
    settings,
)
from diptych.modules.input_embeddings import OWN, InputEmbeddings

if TYPE_CHECKING:
    from diptych.models.scan.model import SCAN


@settings("model")
class SCANConfig:
    """Settings of SCAN. The defaults are text-to-image attention with LogSumExp pooling (t-i LSE) on Flickr30k."""

    feature_dim: Dim = 2048  # of the detector's region features
    dim: Dim = 1024  # of the joint space
    vocab_size: VocabSize = 8481
    word_dim: Dim = 300
    depth: Depth = 1  # layers of the GRU
    bidirectional: bool = True
    direction: Literal["text", "image"] = "text"  # the side whose tokens are queries: words (t-i) or regions (i-t)
    norm: Literal["clipped_l2", "l2", "softmax", "clipped", "none"] = "clipped_l2"  # of the similarities before softmax
    aggregate: Literal["logsumexp", "mean", "max", "sum"] = "logsumexp"  # of the queries' relevance to one score
    lambda_softmax: Annotated[float, Range(0, 1e3, "low")] = 9.0  # inverse temperature of attention (the paper's λ1)
    lambda_lse: Annotated[float, Range(0, 1e3, "low")] = 6.0  # inverse temperature of LogSumExp (the paper's λ2)

    def build(self, embedders: InputEmbeddings = OWN) -> SCAN:
        from diptych.models.scan.model import SCAN

        return SCAN(self, embedders)


PUBLISHED = Published(
    title="Stacked Cross Attention for Image-Text Matching (Lee et al., ECCV 2018)",
    code="github.com/kuanghuei/SCAN, commit 8063557, Apache-2.0",
    model=("scan", "SCAN"),
    parameters={},
    results={
        "Flickr30k, two models, image to text / text to image R@1": "67.4 / 48.6 (paper; not verified here)",
        "COCO 1k, two models": "72.7 / 58.8 (paper; not verified here)",
    },
    regions=36,
)
