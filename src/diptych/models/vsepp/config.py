"""Settings of VSE++, and its published facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diptych.config.published import Published
from diptych.config.validation import (
    Depth,
    Dim,
    VocabSize,
    settings,
)
from diptych.modules.input_embeddings import OWN, InputEmbeddings

if TYPE_CHECKING:
    from diptych.models.vsepp.model import VSEpp


@settings("model")
class VSEppConfig:
    """Settings of VSE++. The defaults are those of the official code."""

    feature_dim: Dim = 2048  # of the image features, or of each region's
    dim: Dim = 1024  # of the joint space
    vocab_size: VocabSize = 11353
    word_dim: Dim = 300
    depth: Depth = 1  # layers of the GRU
    measure: Literal["cosine", "order"] = "cosine"  # "order": order embeddings (section 4.5)

    def build(self, embedders: InputEmbeddings = OWN) -> VSEpp:
        from diptych.models.vsepp.model import VSEpp

        return VSEpp(self, embedders)


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
