"""The fusion interface, and fusion forms of a survey that no system here uses: early summation, separate streams.

Xu, Zhu and Clifton, Multimodal Learning with Transformers: A Survey (TPAMI 2023), section 3.3 and table 3. With the
fusions of modules/fusion.py: multi-stream to one-stream is ``InTurn(Streams, ConcatFusion)``, one-stream to
multi-stream ``InTurn(ConcatFusion, Streams)``, and cross-attention to concatenation ``InTurn(CoAttentionFusion,
ConcatFusion)``.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.modules.tokens import FusedTokens, Span, Tokens


@runtime_checkable
class Fusion(Protocol):
    """A module that fuses text and image tokens of one width."""

    def __call__(self, text: Tokens, image: Tokens) -> FusedTokens:
        """The fused tokens, each modality in its own layout, and their pooled vector."""
        ...

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """One modality through the same layers."""
        ...


class EarlySum(nn.Module):
    """Early summation: text token i plus image token i, with two learned weights, through one transformer.

    Pooled at the first token. If one sequence is shorter, the rest of the other is used as it is.
    Source: Xu et al., TPAMI 2023, table 3. Differs: the survey leaves the weights to the user; here they are learned,
    initialised to 1.
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
        values = self.shares[0] * _pad_values(text, n) + self.shares[1] * _pad_values(image, n)
        mask = _pad_mask(text.mask, n) | _pad_mask(image.mask, n)
        both = self.encode_unimodal(Tokens.from_padded(values, mask, Span("both", "sums", n)))
        padded = both.to_padded()
        return FusedTokens(_with_layout_of(text, padded), _with_layout_of(image, padded), self.pooler(both.first()))


def _pad_values(tokens: Tokens, n: int) -> Tensor:
    """Values padded to n columns, zero at padding."""
    values = tokens.to_padded() * tokens.mask[:, :, None]
    return F.pad(values, (0, 0, 0, n - values.shape[1]))


def _pad_mask(mask: Tensor, n: int) -> Tensor:
    return F.pad(mask, (0, n - mask.shape[1]))


def _with_layout_of(tokens: Tokens, padded: Tensor) -> Tokens:
    """The first columns of `padded`, in the layout of `tokens`."""
    result = Tokens(padded[:, : tokens.mask.shape[1]], tokens.layout)
    return result.pack() if tokens.packed else result


class Streams(nn.Module):
    """Each modality through its own blocks and norm, without interaction; pooled at the first text token.

    `encode_unimodal` raises KeyError for another modality.
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
    """Two fusions, one after the other; the pooled vector is the second's."""

    def __init__(self, first: Fusion, second: Fusion):
        super().__init__()
        self.first, self.second = first, second

    def encode_unimodal(self, tokens: Tokens) -> Tokens:
        """One modality through both."""
        return self.second.encode_unimodal(self.first.encode_unimodal(tokens))

    def forward(self, text: Tokens, image: Tokens) -> FusedTokens:
        pair = self.first(text, image)
        return self.second(pair.text, pair.image)
