"""SCAN: Stacked Cross Attention for Image-Text Matching (Lee et al., ECCV 2018), figures 2 and 3.

Regions are mapped linearly, words encoded by a bidirectional GRU. No layer fuses them: their similarity itself is
attention, whose two stages are in `modules.similarity.StackedAttention`.

Differs from the paper, as the official code: negative similarities are scaled to a tenth before attention is
normalised (equation 1 sets them to zero). Differs from the official code: its l1 norms, which it names but cannot run,
are absent.
"""

from __future__ import annotations

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Regions, Text
from diptych.models.scan.config import SCANConfig
from diptych.models.vsepp.model import RegionProjection
from diptych.modules.input_embeddings import OWN, InputEmbeddings
from diptych.modules.similarity import StackedAttention, unit
from diptych.modules.text_encoders import RecurrentText
from diptych.modules.tokens import Tokens


class SCAN(nn.Module):
    """Region and word embeddings compared by stacked cross attention."""

    def __init__(self, config: SCANConfig, embedders: InputEmbeddings = OWN):
        super().__init__()
        self.image = embedders.build_image(config.dim) or RegionProjection(
            config.feature_dim, config.dim, embedders.feature_dropout
        )
        self.text = RecurrentText(
            config.vocab_size,
            config.dim,
            config.word_dim,
            config.depth,
            config.bidirectional,
            embedders.build_word(config.word_dim),
        )
        self.attend = StackedAttention(
            config.direction, config.norm, config.aggregate, config.lambda_softmax, config.lambda_lse
        )

    def forward(self, image: Regions, text: Text) -> Float[Tensor, "images texts"]:
        """The similarity of every image with every text."""
        return self.similarity(self.encode_image(image), self.encode_text(text))

    def encode_image(self, image: Regions) -> Tokens:
        """Regions in the joint space, as unit vectors."""
        return self.image(image).map(partial(unit, eps=1e-8))

    def encode_text(self, text: Text) -> Tokens:
        """Words in the joint space, as unit vectors."""
        return self.text(text).map(partial(unit, eps=1e-8))

    def similarity(self, image: Tokens, text: Tokens) -> Float[Tensor, "images texts"]:
        """The similarity of every image with every text, by stacked cross attention."""
        return self.attend(image, text)
