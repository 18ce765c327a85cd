"""Settings of SCAN, and what was published of it."""

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

if TYPE_CHECKING:
    from diptych.models.scan import model as scan


@settings("model")
class SCANConfig:
    """Arguments of models.scan.SCAN; the defaults are t-i LSE on Flickr30k."""

    feature_dim: Dim = 2048
    dim: Dim = 1024
    vocab_size: VocabSize = 8481
    word_dim: Dim = 300
    depth: Depth = 1
    bidirectional: bool = True
    direction: Literal["text", "image"] = "text"
    norm: Literal["clipped_l2", "l2", "softmax", "clipped", "none"] = "clipped_l2"
    aggregate: Literal["logsumexp", "mean", "max", "sum"] = "logsumexp"
    lambda_softmax: Annotated[float, Range(0, 1e3, "low")] = 9.0
    lambda_lse: Annotated[float, Range(0, 1e3, "low")] = 6.0

    def build(self) -> scan.SCAN:
        from diptych.models.scan.model import SCAN as Model

        return Model(**vars(self))


# What was published, to stand beside our figures; none was measured here. "Not verified here": from the paper by memory; look it
# up before citing it. "As leaderboards list it": from public lists of results (wizwand.com), not from the paper itself.
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
