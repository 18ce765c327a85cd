"""Generation options, and incremental decoding with a key-value cache, shared by all generation methods."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.batch import Text
from diptych.modules.attention import KVCache, SharedContext
from diptych.modules.frozen_text import FrozenTextEmbedding
from diptych.modules.tokens import Tokens, packing
from diptych.protocols import TextDecoder


@dataclass(frozen=True)
class GenerationConfig:
    """Constraints on generated texts; names as in Hugging Face's `generate`. Lengths include the prompt.

    `repetition_penalty`: the score of a token that the text already contains is divided by it if positive and
    multiplied if negative (Keskar et al. 2019, section 4.1); 1 changes nothing.
    """

    eos_token_id: int
    pad_token_id: int
    max_length: int
    min_length: int = 0  # no end token before this length
    repetition_penalty: float = 1.0

    def constrain(self, ids: Int[Tensor, "b n"], scores: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """The next-token scores of each text after the repetition penalty and the minimum length."""
        if self.repetition_penalty != 1.0:
            repeated = scores.gather(1, ids)
            penalty = self.repetition_penalty
            scores = scores.scatter(1, ids, torch.where(repeated < 0, repeated * penalty, repeated / penalty))
        if ids.shape[1] < self.min_length:
            scores = scores.index_fill(1, torch.tensor(self.eos_token_id, device=scores.device), -math.inf)
        return scores


class IncrementalDecoder:
    """Next-token logits of growing texts.

    The keys and values of the context are computed once, whatever the number of steps and of texts per context. With
    `use_cache` those of earlier tokens come from a cache; without it the whole text is encoded again at every step, for
    a model whose `next_token_logits` takes no cache. Frozen text embeddings get the prefix of the newest tokens.

    `copies`: texts of each context, next to each other (beams). They begin with the same prompt, for which the first
    step is computed once per context.
    """

    def __init__(self, model: TextDecoder, context: Tokens, use_cache: bool = True, copies: int = 1):
        self.model, self.copies = model, copies
        self.context = SharedContext.of(Tokens(context.to_padded(), context.layout))  # the cache needs padding
        modules = model.modules() if isinstance(model, nn.Module) else ()
        self.frozen_embeddings = [module for module in modules if isinstance(module, FrozenTextEmbedding)]
        self.cache = KVCache() if use_cache else None

    def next_token_logits(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b v"]:
        """Logits of the token that follows each text."""
        if self.copies > 1:
            logits = self._newest_logits(ids[:: self.copies])
            copied = torch.arange(len(logits), device=ids.device).repeat_interleave(self.copies)
            self.context, self.copies = self.context.index_samples(copied), 1
            self.reorder(copied)
            return logits[copied]
        return self._newest_logits(ids)

    def _newest_logits(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b v"]:
        prefix, newest = ids.tensor_split([0 if self.cache is None else self.cache.length], 1)
        with packing(False), ExitStack() as stack:
            for embedding in self.frozen_embeddings:
                stack.enter_context(embedding.with_prefix(prefix))
            text = Text(newest, torch.ones_like(newest, dtype=torch.bool))
            return self.model.next_token_logits(text, self.context, self.cache)[:, -1].float()

    def reorder(self, texts: Int[Tensor, " b"]) -> None:
        """Selects the texts to continue.

        Each must be of the same sample as the one it replaces: contexts, their keys and values do not move.
        """
        if self.cache is not None:
            self.cache.index_samples(texts)
