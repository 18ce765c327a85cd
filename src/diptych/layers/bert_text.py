"""Text through BERT, to be read in one vector."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from diptych.inputs import Text
from diptych.layers.block import PostNormBlock
from diptych.layers.embed import TextEmbedding
from diptych.layers.init import init_transformer
from diptych.tokens import Tokens


class BertText(nn.Module):
    """BERT (Devlin et al. 2019), whose [CLS] is mapped to `width`: a text tower to stand where RecurrentText does.

    ``model.text = BertText(1024)`` gives VSE++ one. The defaults are BERT-base's. Differs: attention has no dropout of its own.
    """

    def __init__(
        self, width: int, vocabulary: int = 30522, length: int = 512, inner: int = 768, depth: int = 12,
        heads: int = 12, hidden: int = 3072, dropout: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        self.words = TextEmbedding(vocabulary, length, inner, dropout=dropout)
        self.blocks = nn.ModuleList(PostNormBlock(inner, heads, hidden, dropout=dropout) for _ in range(depth))
        self.project = nn.Linear(inner, width)
        self.apply(init_transformer)

    def forward(self, text: Text) -> Tokens:
        tokens = self.words(text)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def readout(self, tokens: Tokens) -> Float[Tensor, "b d"]:
        return self.project(tokens.first())
