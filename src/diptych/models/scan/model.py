"""SCAN: Stacked Cross Attention for Image-Text Matching (Lee et al., ECCV 2018), figures 2 and 3.

Regions mapped linearly and words read by a two-way GRU meet in no layer: their similarity itself attends.

Differs from the paper, as the official code: negative likenesses are shrunk to a tenth before attention is normalised, where
equation 1 cuts them off. Differs from the official code: its l1 norms, which it names but can't run, are absent.
"""

from __future__ import annotations

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Regions, Text
from diptych.models.vsepp.model import project, regions
from diptych.modules.similarity import StackedAttention, unit
from diptych.modules.text_encoders import RecurrentText
from diptych.modules.tokens import Tokens


class SCAN(nn.Module):
    """`features`: numbers per region. The rest, from `asking` on, are StackedAttention's; the defaults are t-i LSE.

    Another similarity is an assignment: ``model.attend = StackedAttention("image", sharpness=4, peak=5)`` is i-t LSE.
    """

    def __init__(
        self, feature_dim: int = 2048, dim: int = 1024, vocab_size: int = 8481, word_dim: int = 300, depth: int = 1,
        bidirectional: bool = True, direction: str = "text", norm: str = "clipped_l2", aggregate: str = "logsumexp",
        lambda_softmax: float = 9.0, lambda_lse: float = 6.0,
    ):  # fmt: skip
        super().__init__()
        self.image = project(feature_dim, dim)
        self.text = RecurrentText(vocab_size, dim, word_dim, depth, bidirectional)
        self.attend = StackedAttention(direction, norm, aggregate, lambda_softmax, lambda_lse)

    def encode_image(self, image: Regions) -> Tokens:
        return regions(image).map(self.image).map(partial(unit, eps=1e-8))

    def encode_text(self, text: Text) -> Tokens:
        return self.text(text).map(partial(unit, eps=1e-8))

    def similarity(self, text: Tokens, image: Tokens) -> Float[Tensor, "images texts"]:
        return self.attend(text, image)
