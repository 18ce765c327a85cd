"""Text through a recurrent network, as before transformers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from diptych.inputs import Text
from diptych.layers.pool import last
from diptych.layout import Span
from diptych.tokens import Tokens


class RecurrentText(nn.Module):
    """Word embeddings, then gated recurrent units; with `bidirectional` the mean of both directions (SCAN, section 3.2).

    Pads are never read. Words begin uniform in ±0.1, as VSE++'s and SCAN's official code has them.
    """

    def __init__(self, vocabulary: int, width: int, word_width: int = 300, depth: int = 1, bidirectional: bool = False):
        super().__init__()
        self.word = nn.Embedding(vocabulary, word_width)
        self.gru = nn.GRU(word_width, width, depth, batch_first=True, bidirectional=bidirectional)
        nn.init.uniform_(self.word.weight, -0.1, 0.1)

    def forward(self, text: Text) -> Tokens:
        """One state per word."""
        n = text.ids.shape[1]
        packed = pack_padded_sequence(
            self.word(text.ids), text.real.sum(1).cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=n)
        if self.gru.bidirectional:
            states = torch.stack(states.chunk(2, -1)).mean(0)
        return Tokens.of(states, text.real, Span("text", "words", n))

    def readout(self, tokens: Tokens) -> Float[Tensor, "b d"]:
        """The state at the last word."""
        return last(tokens)
