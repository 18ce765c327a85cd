"""Pooling: from a token sequence to one vector; and a running mean over batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.modules.attention import CrossAttention
from diptych.modules.tokens import Span, Tokens


class RunningMean(nn.Module):
    """The mean of all rows of all batches so far.

    Its state is checkpointed, and equal on every rank if each rank updates it with the global batch.
    """

    mean: Float[Tensor, " width"]
    rows: Float[Tensor, ""]

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("rows", torch.tensor(0.0))

    @torch.no_grad()
    def update(self, total: Float[Tensor, " width"], rows: Float[Tensor, ""]) -> None:
        """Adds a batch: `total` is the sum of its rows, `rows` their number."""
        self.rows.add_(rows)
        self.mean.add_((total - rows * self.mean) / self.rows.clamp(min=1))


class Pooler(nn.Module):
    """BERT's pooler: linear and tanh on the first token."""

    def __init__(self, dim: int):
        super().__init__()
        self.dense = nn.Linear(dim, dim)

    def forward(self, first: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return self.dense(first).tanh()


def last_token(tokens: Tokens) -> Float[Tensor, "b d"]:
    """The last real token of each right-padded sample."""
    following = F.pad(tokens.mask[:, 1:], (0, 1))
    return tokens.gather(tokens.mask & ~following)


class ProductPooler(nn.Module):
    """The product of both streams' first tokens, each after linear and ReLU (ViLBERT, section 3.2)."""

    def __init__(self, text_dim: int, image_dim: int, dim: int, dropout: float = 0.0):
        super().__init__()
        self.text = nn.Linear(text_dim, dim)
        self.image = nn.Linear(image_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def project_text(self, first: Float[Tensor, "b d"]) -> Float[Tensor, "b p"]:
        return self.text(first).relu()

    def project_image(self, first: Float[Tensor, "b e"]) -> Float[Tensor, "b p"]:
        return self.image(first).relu()

    def forward(self, text: Float[Tensor, "b d"], image: Float[Tensor, "b e"]) -> Float[Tensor, "b p"]:
        return self.dropout(self.project_text(text) * self.project_image(image))


class QueryPool(nn.Module):
    """Attentional pooling: learned queries cross-attend to a sequence of any length (CoCa, figure 2).

    Queries and sequence are normalised; there is no residual connection. The first query's output is a class token.
    """

    def __init__(self, num_queries: int, dim: int, num_heads: int, context_dim: int, eps: float):
        super().__init__()
        self.query = nn.Parameter(torch.randn(num_queries, dim))
        self.norm = nn.LayerNorm(dim, eps)
        self.context_norm = nn.LayerNorm(context_dim, eps)
        self.attention = CrossAttention(dim, num_heads, context_dim)

    def forward(self, tokens: Tokens) -> Tokens:
        n, modality = len(self.query), tokens.layout.spans[0].modality
        mask = torch.ones(len(tokens), n, dtype=torch.bool, device=self.query.device)
        values = self.norm(self.query).expand(len(tokens), -1, -1)
        queries = Tokens.from_padded(values, mask, Span(modality, "cls", 1), Span(modality, "queries", n - 1))
        return self.attention(queries, tokens.map(self.context_norm))
