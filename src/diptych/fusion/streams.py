"""Two streams that do not meet, and fusions one after the other: with these, three forms of a survey are made of the others.

Xu, Zhu and Clifton, Multimodal Learning with Transformers: A Survey (TPAMI 2023), section 3.3 and table 3:
many streams to one is ``InTurn(Streams, Concatenate)``, one stream to many ``InTurn(Concatenate, Streams)``, and
cross-attention then concatenation ``InTurn(CoAttention, Concatenate)``.
"""

from __future__ import annotations

from torch import nn

from diptych.fusion.form import Fusion
from diptych.tokens import Pair, Tokens


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

    def alone(self, tokens: Tokens) -> Tokens:
        """One modality through its own blocks."""
        modality = tokens.layout.spans[0].modality
        for block in self.blocks[modality].children():
            tokens = block(tokens)
        return tokens.map(self.norms[modality])

    def forward(self, text: Tokens, image: Tokens) -> Pair:
        text, image = self.alone(text), self.alone(image)
        return Pair(text, image, self.pooler(text.first()))


class InTurn(nn.Module):
    """One fusion on what another has made; the summary is the second's."""

    def __init__(self, first: Fusion, second: Fusion):
        super().__init__()
        self.first, self.second = first, second

    def alone(self, tokens: Tokens) -> Tokens:
        """One modality through both."""
        return self.second.alone(self.first.alone(tokens))

    def forward(self, text: Tokens, image: Tokens) -> Pair:
        pair = self.first(text, image)
        return self.second(pair.text, pair.image)
