"""From a sequence to one vector."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.tokens import Tokens


class Pooler(nn.Module):
    """BERT's pooler: linear and tanh on the first token."""

    def __init__(self, width: int):
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, first: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return self.dense(first).tanh()


def last(tokens: Tokens) -> Float[Tensor, "b d"]:
    """The last token of each sample, whose real ones stand in front."""
    following = F.pad(tokens.real[:, 1:], (0, 1))
    return tokens.rows(tokens.real & ~following)


class ProductPooler(nn.Module):
    """Two streams' first tokens, each through linear and ReLU, multiplied (ViLBERT, section 3.2)."""

    def __init__(self, text_width: int, image_width: int, width: int, dropout: float = 0.0):
        super().__init__()
        self.text = nn.Linear(text_width, width)
        self.image = nn.Linear(image_width, width)
        self.dropout = nn.Dropout(dropout)

    def of_text(self, first: Float[Tensor, "b d"]) -> Float[Tensor, "b p"]:
        return self.text(first).relu()

    def of_image(self, first: Float[Tensor, "b e"]) -> Float[Tensor, "b p"]:
        return self.image(first).relu()

    def forward(self, text: Float[Tensor, "b d"], image: Float[Tensor, "b e"]) -> Float[Tensor, "b p"]:
        return self.dropout(self.of_text(text) * self.of_image(image))
