"""Two toy decoders: one with known logits, and one with attention and a key-value cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych.batch import Text
from diptych.modules.attention import Context, KVCache, causal
from diptych.modules.block import PostNormBlock
from diptych.modules.embeddings import TextEmbedding
from diptych.modules.tokens import Span, Tokens

PAD, END = 0, 1


def context(b: int, dim: int = 8) -> Tokens:
    """Context tokens of different lengths and values for each sample."""
    values = torch.randn(b, 4, dim, generator=torch.Generator().manual_seed(b))
    real = torch.arange(4) < torch.arange(b)[:, None] % 4 + 1
    return Tokens.from_padded(values, real, Span("image", "patches", 4))


class Table:
    """A decoder whose next token depends on the last one only: `logits` (v, v)."""

    def __init__(self, logits: Tensor):
        self.logits = logits

    def next_token_logits(self, text: Text, context: Context, cache: KVCache | None = None) -> Tensor:
        return self.logits[text.ids]


class Speaker(nn.Module):
    """A tiny transformer decoder, with or without a cache."""

    def __init__(self, vocab_size: int = 11, dim: int = 8, word: nn.Module | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.words = TextEmbedding(vocab_size, 16, dim, word=word)
        self.blocks = nn.ModuleList(PostNormBlock(dim, 2, 16, context_dim=dim) for _ in range(2))
        self.out = nn.Linear(dim, vocab_size)
        for weight in self.parameters():
            weight.data.normal_(std=0.8)
        self.columns = 0  # total columns computed

    def next_token_logits(self, text: Text, context: Context, cache: KVCache | None = None) -> Tensor:
        past = 0 if cache is None else cache.length
        n = text.ids.shape[1]
        self.columns += n
        tokens = self.words(text, past)
        for block in self.blocks:
            tokens = block(tokens, context, causal(n, past + n), cache)
        return self.out(tokens.to_padded())
