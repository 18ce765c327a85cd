"""VSE++: Improving Visual-Semantic Embeddings with Hard Negatives (Faghri et al., BMVC 2018), section 3.1.

A linear map of an image's features and the last state of a GRU over its caption, as unit vectors of one space.

Differs from the paper: the convolutional network below is not part of it; images come as its features (the official
code's "precomp"). Differs from the official code: a zero vector stays zero, where that gives NaN; the order is always that of
absolute values (there --use_abs, which the published order embeddings have).
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Regions, Text
from diptych.modules.similarity import cosine, order_similarity
from diptych.modules.text_encoders import BertText, RecurrentText
from diptych.modules.tokens import Span, Tokens

MEASURES = {"cosine": cosine, "order": order_similarity}


class VSEpp(nn.Module):
    """An image is one region, or several that are averaged; `features` is how many numbers a region has.

    `measure`: "cosine", or "order" for the order embeddings of section 4.5. Another text tower is an assignment:
    ``model.text = BertText(width)`` (layers.bert_text).
    """

    def __init__(
        self, feature_dim: int = 2048, dim: int = 1024, vocab_size: int = 11353, word_dim: int = 300, depth: int = 1,
        measure: str = "cosine",
    ):  # fmt: skip
        super().__init__()
        if measure not in MEASURES:
            raise ValueError(f"measure is 'cosine' or 'order', not {measure!r}")
        self.measure = measure
        self.image = project(feature_dim, dim)
        self.text: RecurrentText | BertText = RecurrentText(vocab_size, dim, word_dim, depth)

    def encode_image(self, image: Regions) -> Tokens:
        return regions(image).map(self.image)

    def encode_text(self, text: Text) -> Tokens:
        return self.text(text)

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"]]:
        """The joint embedding of one side."""
        is_text = tokens.layout.spans[0].modality == "text"
        return (F.normalize(self.text.readout(tokens) if is_text else tokens.mean(), dim=1),)

    def similarity(self, text: Tokens, image: Tokens) -> Float[Tensor, "images texts"]:
        (texts,), (images,) = self.pooled_features(text), self.pooled_features(image)
        return MEASURES[self.measure](images, texts)


def project(feature_dim: int, dim: int) -> nn.Linear:
    """The map into the joint space, begun as the official code does (Xavier's uniform; no bias)."""
    linear = nn.Linear(feature_dim, dim)
    bound = math.sqrt(6 / (feature_dim + dim))
    nn.init.uniform_(linear.weight, -bound, bound)
    nn.init.zeros_(linear.bias)
    return linear


def regions(image: Regions) -> Tokens:
    """A detector's features as they are."""
    return Tokens.from_padded(image.features, image.mask, Span("image", "regions", image.features.shape[1]))
