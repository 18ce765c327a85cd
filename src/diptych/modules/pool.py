"""The mean of all that was seen.

From a sequence to one vector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.modules.attention import CrossAttention
from diptych.modules.tokens import Span, Tokens


class RunningMean(nn.Module):
    """Of the rows that it was shown, batch after batch: state that checkpoints, and is the same on every rank where all are
    shown the batch of all.
    """

    mean: Float[Tensor, " width"]
    rows: Float[Tensor, ""]

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("rows", torch.tensor(0.0))

    @torch.no_grad()
    def learn(self, total: Float[Tensor, " width"], rows: Float[Tensor, ""]) -> None:
        """The sum of a batch's rows, and how many they are."""
        self.rows.add_(rows)
        self.mean.add_((total - rows * self.mean) / self.rows.clamp(min=1))


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


class QueryPool(nn.Module):
    """Learned queries, each of which gathers what it asks for from a sequence of any length (CoCa, figure 2: attentional
    pooling). Queries and sequence are normalised; nothing is added back. The first query's answer is a class token.
    """

    def __init__(self, queries: int, width: int, heads: int, context_width: int, eps: float):
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, width))
        self.norm = nn.LayerNorm(width, eps)
        self.context_norm = nn.LayerNorm(context_width, eps)
        self.attention = CrossAttention(width, heads, context_width)

    def forward(self, tokens: Tokens) -> Tokens:
        n, modality = len(self.query), tokens.layout.spans[0].modality
        real = torch.ones(len(tokens), n, dtype=torch.bool, device=self.query.device)
        asking = self.norm(self.query).expand(len(tokens), -1, -1)
        queries = Tokens.of(asking, real, Span(modality, "cls", 1), Span(modality, "queries", n - 1))
        return self.attention(queries, tokens.map(self.context_norm))
