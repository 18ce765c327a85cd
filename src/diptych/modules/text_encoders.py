"""Text encoders of the visual-semantic embedding models (VSE++, SCAN): BERT, and recurrent networks."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from diptych.batch import Text
from diptych.modules.block import PostNormBlock
from diptych.modules.embeddings import TextEmbedding
from diptych.modules.init import init_transformer
from diptych.modules.pool import last_token
from diptych.modules.tokens import Span, Tokens


class BertText(nn.Module):
    """BERT (Devlin et al. 2019) with a projection of [CLS] to `dim`: a text encoder instead of RecurrentText.

    ``VSEpp(config, text=BertText(1024))`` is VSE++ with it. The defaults are BERT-base's. Differs: no dropout on
    attention weights.
    """

    def __init__(
        self,
        dim: int,
        vocab_size: int = 30522,
        length: int = 512,
        attention_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.words = TextEmbedding(vocab_size, length, attention_dim, dropout=dropout)
        self.blocks = nn.ModuleList(
            PostNormBlock(attention_dim, num_heads, mlp_dim, dropout=dropout) for _ in range(depth)
        )
        self.project = nn.Linear(attention_dim, dim)
        self.apply(init_transformer)

    def forward(self, text: Text) -> Tokens:
        tokens = self.words(text)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def pool(self, tokens: Tokens) -> Float[Tensor, "b d"]:
        return self.project(tokens.first())


class RecurrentText(nn.Module):
    """Word embeddings, then a GRU; with `bidirectional` the mean of both directions (SCAN, section 3.2).

    Padding is skipped. `word`: word embeddings instead of its own, which are initialised uniformly in ±0.1, as in
    VSE++'s and SCAN's official code.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        word_dim: int = 300,
        depth: int = 1,
        bidirectional: bool = False,
        word: Any = None,  # an nn.Module from token ids to vectors, instead of an nn.Embedding
    ):
        super().__init__()
        self.word = word or nn.Embedding(vocab_size, word_dim)
        self.gru = nn.GRU(word_dim, dim, depth, batch_first=True, bidirectional=bidirectional)
        if isinstance(self.word, nn.Embedding):
            nn.init.uniform_(self.word.weight, -0.1, 0.1)

    def forward(self, text: Text) -> Tokens:
        """One hidden state per word. Raises ValueError for a text without words."""
        text.check()
        n, lengths = text.ids.shape[1], text.mask.sum(1).cpu()
        if not lengths.all():
            raise ValueError(
                f"expected texts of at least one token, got none for the texts with indices "
                f"{(lengths == 0).nonzero().flatten().tolist()}: leave these texts out"
            )
        packed = pack_padded_sequence(self.word(text.ids), lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=n)
        if self.gru.bidirectional:
            states = torch.stack(states.chunk(2, -1)).mean(0)
        return Tokens.from_padded(states, text.mask, Span("text", "words", n))

    def pool(self, tokens: Tokens) -> Float[Tensor, "b d"]:
        """The hidden state at the last word."""
        return last_token(tokens)
