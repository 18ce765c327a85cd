"""What every fusion is, so that one can be exchanged for another by assignment.

Early summation: both modalities' tokens are added place by place, and one transformer reads the sums.

Two streams that do not meet, and fusions one after the other: with these, three forms of a survey are made of the others.

Xu, Zhu and Clifton, Multimodal Learning with Transformers: A Survey (TPAMI 2023), section 3.3 and table 3:
many streams to one is ``InTurn(Streams, Concatenate)``, one stream to many ``InTurn(Concatenate, Streams)``, and
cross-attention then concatenation ``InTurn(CoAttention, Concatenate)``.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.modules.tokens import FusedTokens, Span, Tokens


@runtime_checkable
class Fusion(Protocol):
    """A part in which text and image tokens of one width meet."""

    def __call__(self, text: Tokens, image: Tokens) -> FusedTokens:
        """Both, after they have met, each in its own layout; and the summary that heads of the pair read."""
        ...

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """One modality through the same parts."""
        ...


class EarlySum(nn.Module):
    """Text token i and image token i as one token, weighted by two learned factors (Xu et al., TPAMI 2023, table 3: early
    summation); read at the first. Where one sequence has ended, the other goes on alone.

    Differs: the survey leaves the factors to the user; here they are learned, from 1 and 1.
    """

    def __init__(self, blocks: nn.ModuleList, norm: nn.Module, pooler: nn.Module):
        super().__init__()
        self.blocks, self.norm, self.pooler = blocks, norm, pooler
        self.shares = nn.Parameter(torch.ones(2))

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """One modality through the same blocks."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.map(self.norm)

    def forward(self, text: Tokens, image: Tokens) -> FusedTokens:
        n = max(text.mask.shape[1], image.mask.shape[1])
        values = self.shares[0] * _laid(text, n) + self.shares[1] * _laid(image, n)
        real = _wide(text.mask, n) | _wide(image.mask, n)
        both = self.encode_unimodal(Tokens.from_padded(values, real, Span("both", "sums", n)))
        canvas = both.to_padded()
        return FusedTokens(_of(canvas, text), _of(canvas, image), self.pooler(both.first()))


def _laid(tokens: Tokens, n: int) -> Tensor:
    """Values on a canvas of n columns, zero where nothing is real."""
    values = tokens.to_padded() * tokens.mask[:, :, None]
    return F.pad(values, (0, 0, 0, n - values.shape[1]))


def _wide(real: Tensor, n: int) -> Tensor:
    return F.pad(real, (0, n - real.shape[1]))


def _of(canvas: Tensor, like: Tokens) -> Tokens:
    """The columns at which a modality's own tokens lay."""
    tokens = Tokens(canvas[:, : like.mask.shape[1]], like.layout)
    return tokens.pack() if like.packed else tokens


class Streams(nn.Module):
    """Each modality through blocks and a norm of its own; the text's first token is read. Nothing is exchanged.

    Raises KeyError where `alone` is given tokens of another modality.
    """

    def __init__(
        self, text: nn.ModuleList, image: nn.ModuleList, text_norm: nn.Module, image_norm: nn.Module, pooler: nn.Module
    ):
        super().__init__()
        self.blocks = nn.ModuleDict({"text": text, "image": image})
        self.norms = nn.ModuleDict({"text": text_norm, "image": image_norm})
        self.pooler = pooler

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """One modality through its own blocks."""
        modality = tokens.layout.spans[0].modality
        for block in self.blocks[modality].children():
            tokens = block(tokens)
        return tokens.map(self.norms[modality])

    def forward(self, text: Tokens, image: Tokens) -> FusedTokens:
        text, image = self.encode_unimodal(text), self.encode_unimodal(image)
        return FusedTokens(text, image, self.pooler(text.first()))


class InTurn(nn.Module):
    """One fusion on what another has made; the summary is the second's."""

    def __init__(self, first: Fusion, second: Fusion):
        super().__init__()
        self.first, self.second = first, second

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """One modality through both."""
        return self.second.encode_unimodal(self.first.encode_unimodal(tokens))

    def forward(self, text: Tokens, image: Tokens) -> FusedTokens:
        pair = self.first(text, image)
        return self.second(pair.text, pair.image)
