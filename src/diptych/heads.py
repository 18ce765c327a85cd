"""One small network per question asked of tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Match(nn.Module):
    """Do this text and this image belong together? Two logits: mismatched, matched."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 2)

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b 2"]:
        return self.linear(pooled)


class Vocabulary(nn.Module):
    """Which word stands here? BERT's masked-word head: linear, GELU, norm, then a logit per word of the vocabulary.

    The output vectors are the head's own, not the word embeddings (ViLT unties them; BERT does not).
    """

    def __init__(self, width: int, vocabulary: int, eps: float = 1e-12):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.gelu = nn.GELU()
        self.norm = nn.LayerNorm(width, eps)
        self.words = nn.Linear(width, vocabulary, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        return self.words(self.norm(self.gelu(self.dense(x)))) + self.bias


class Classify(nn.Module):
    """Which of these answers? Linear to a hidden width, norm, GELU, linear (ViLT's downstream head).

    Reads one summary per image: `inputs` is the width of all of them side by side.
    """

    def __init__(self, inputs: int, hidden: int, answers: int, eps: float = 1e-5):
        super().__init__()
        self.dense = nn.Linear(inputs, hidden)
        self.norm = nn.LayerNorm(hidden, eps)
        self.gelu = nn.GELU()
        self.answers = nn.Linear(hidden, answers)

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b a"]:
        return self.answers(self.gelu(self.norm(self.dense(pooled))))


class Rank(nn.Module):
    """How well does this text fit this image? One score, to be compared between candidates (ViLT's retrieval)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        return self.linear(pooled).squeeze(-1)
