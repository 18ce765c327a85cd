"""Settings of VSEpp, and what was published of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diptych.config.published import Published
from diptych.config.validation import (
    Depth,
    Dim,
    VocabSize,
    settings,
)

if TYPE_CHECKING:
    from diptych.models.vsepp import model as vsepp


@settings("model")
class VSEppConfig:
    """Arguments of models.vsepp.VSEpp; the defaults are those of its official code."""

    feature_dim: Dim = 2048
    dim: Dim = 1024
    vocab_size: VocabSize = 11353
    word_dim: Dim = 300
    depth: Depth = 1
    measure: Literal["cosine", "order"] = "cosine"

    def build(self) -> vsepp.VSEpp:
        from diptych.models.vsepp.model import VSEpp as Model

        return Model(**vars(self))


# What was published, to stand beside our figures; none was measured here. "Not verified here": from the paper by memory; look it
# up before citing it. "As leaderboards list it": from public lists of results (wizwand.com), not from the paper itself.
PUBLISHED = Published(
    title="VSE++: Improving Visual-Semantic Embeddings with Hard Negatives (Faghri et al., BMVC 2018)",
    code="github.com/fartashf/vsepp, commit abe382f, Apache-2.0",
    model=("vsepp", "VSEpp"),
    parameters={},
    results={
        "COCO 1k, fine-tuned ResNet, image to text / text to image R@1": "64.6 / 52.0 (paper; not verified here)",
        "Flickr30k, the same": "52.9 / 39.6 (paper, as leaderboards list it)",
    },
    regions=1,
)
