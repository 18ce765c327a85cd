"""What every way of generating shares: its rules, and a model that reads what has been written so far."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.batch import Text
from diptych.modules.attention import KVCache
from diptych.modules.frozen_text import FrozenTextEmbedding
from diptych.modules.tokens import Tokens, packing
from diptych.protocols import TextDecoder


@dataclass(frozen=True)
class GenerationConfig:
    """What every text keeps to. Lengths count the prompt's tokens too.

    `repetition`: the score of a token that the text holds already is divided by it where positive, multiplied where
    negative (Keskar et al. 2019, section 4.1); 1 changes nothing.
    """

    eos_token_id: int
    pad_token_id: int
    max_length: int
    min_length: int = 0  # no end while the text has fewer tokens
    repetition_penalty: float = 1.0

    def allowed(self, ids: Int[Tensor, "b n"], scores: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """The scores of the next token of each text, as these rules leave them."""
        if self.repetition_penalty != 1.0:
            seen = scores.gather(1, ids)
            worse = torch.where(seen < 0, seen * self.repetition_penalty, seen / self.repetition_penalty)
            scores = scores.scatter(1, ids, worse)
        if ids.shape[1] < self.min_length:
            scores = scores.index_fill(1, torch.tensor(self.eos_token_id, device=scores.device), -math.inf)
        return scores


class IncrementalDecoder:
    """A model that reads texts as they grow. With `remember` each token is computed once, in a cache; without it the
    whole text is read again at every step, for a `decode` that takes no cache. Where words are given by another encoder, it
    is told of what stands before the newest.
    """

    def __init__(self, model: TextDecoder, context: Tokens, remember: bool = True):
        self.model, self.context = model, Tokens(context.to_padded(), context.layout)  # padded, as a cache needs it
        parts = model.modules() if isinstance(model, nn.Module) else ()
        self.given = [part for part in parts if isinstance(part, FrozenTextEmbedding)]
        self.cache = KVCache() if remember else None

    def next_token_logits(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b v"]:
        """Logits of the token that follows each text."""
        before, newest = ids.tensor_split([0 if self.cache is None else self.cache.length], 1)
        with packing(False), ExitStack() as told:
            for part in self.given:
                told.enter_context(part.with_prefix(before))
            text = Text(newest, torch.ones_like(newest, dtype=torch.bool))
            return self.model.next_token_logits(text, self.context, self.cache)[:, -1].float()

    def repeat_samples(self, copies: int) -> None:
        """Goes on with so many copies of each sample, side by side."""
        samples = torch.arange(len(self.context), device=self.context.mask.device)
        self.context = self.context.index_samples(samples.repeat_interleave(copies))

    def reorder(self, texts: Int[Tensor, " b"]) -> None:
        """Goes on with these texts. Each must be of the sample whose place it takes: contexts stay where they are."""
        if self.cache is not None:
            self.cache.index_samples(texts)
