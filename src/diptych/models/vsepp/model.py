"""VSE++: Improving Visual-Semantic Embeddings with Hard Negatives (Faghri et al., BMVC 2018), section 3.1.

A linear map of an image's features and the last state of a GRU over its caption, as unit vectors of one joint space.
The loss with hard negatives is `objectives.triplet.TripletLoss`.

Differs from the paper: the convolutional network is not part of the model; images come as its features (the official
code's "precomp"). Differs from the official code: a zero vector stays zero (there it becomes NaN); order embeddings
always compare absolute values (there --use_abs, which the published order embeddings have).
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Regions, Text
from diptych.models.vsepp.config import VSEppConfig
from diptych.modules.frozen_text import InputDropout
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.modules.similarity import cosine, order_similarity
from diptych.modules.text_encoders import BertText, RecurrentText
from diptych.modules.tokens import Span, Tokens

MEASURES = {"cosine": cosine, "order": order_similarity}


class RegionProjection(InputDropout):
    """Region features mapped linearly into the joint space, initialised as in the official code (Xavier uniform)."""

    def __init__(self, feature_dim: int, dim: int, dropout: float = 0.0):
        super().__init__(feature_dim, dim, dropout)
        bound = math.sqrt(6 / (feature_dim + dim))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, input: Regions) -> Tokens:  # type: ignore[override]
        """The region tokens b n dim. Raises ValueError: `Regions.check`."""
        input.check(self.in_features)
        span = Span("image", "regions", input.features.shape[1])
        return Tokens.from_padded(input.features, input.mask, span).map(super().forward)


class VSEpp(nn.Module):
    """A joint embedding of images (one region, or the mean of several) and texts.

    Args:
        config: sizes and options.
        embedders: input embeddings instead of the model's own.
        text: another text encoder than the GRU.
    """

    def __init__(self, config: VSEppConfig, embedders: InputEmbeddings = OWN, text: BertText | None = None):
        super().__init__()
        self.measure = config.measure
        self.image = embedders.build_image(config.dim) or RegionProjection(
            config.feature_dim, config.dim, embedders.feature_dropout
        )
        self.text = text or RecurrentText(
            config.vocab_size,
            config.dim,
            config.word_dim,
            config.depth,
            word=embedders.build_word(config.word_dim),
        )

    def forward(self, image: Regions, text: Text) -> Float[Tensor, "images texts"]:
        """The similarity of every image with every text."""
        return self.similarity(self.encode_image(image), self.encode_text(text))

    def encode_image(self, image: Regions) -> Tokens:
        """Region features in the joint space."""
        return self.image(image)

    def encode_text(self, text: Text) -> Tokens:
        """The states of the text tower."""
        return self.text(text)

    def pooled_features(self, tokens: Tokens) -> tuple[Float[Tensor, "b d"]]:
        """The joint embedding of one modality, as unit vectors."""
        is_text = tokens.layout.spans[0].modality == "text"
        return (F.normalize(self.text.pool(tokens) if is_text else tokens.mean(), dim=1),)

    def similarity(self, image: Tokens, text: Tokens) -> Float[Tensor, "images texts"]:
        """The similarity of every image with every text, by `measure`."""
        (images,), (texts,) = self.pooled_features(image), self.pooled_features(text)
        return MEASURES[self.measure](images, texts)
