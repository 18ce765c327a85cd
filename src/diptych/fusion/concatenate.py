"""Single-stream fusion: one sequence of both modalities through one transformer."""

from __future__ import annotations

from torch import nn

from diptych.tokens import Pair, Tokens


class Concatenate(nn.Module):
    """Text tokens, then image tokens, through the same blocks and a final norm; read at the first text token (ViLT, figure 3)."""

    def __init__(self, blocks: nn.ModuleList, norm: nn.Module, pooler: nn.Module):
        super().__init__()
        self.blocks, self.norm, self.pooler = blocks, norm, pooler

    def alone(self, tokens: Tokens) -> Tokens:
        """One modality through the same blocks."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.map(self.norm)

    def forward(self, text: Tokens, image: Tokens) -> Pair:
        both = self.alone(Tokens.join(text, image))
        text, image = both.split(text.layout, image.layout)
        return Pair(text, image, self.pooler(text.first()))
