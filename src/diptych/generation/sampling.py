"""Greedy search and nucleus (top-p) sampling."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.generation.decoding import GenerationConfig, IncrementalDecoder
from diptych.modules.tokens import Tokens
from diptych.protocols import TextDecoder


def greedy(
    model: TextDecoder, context: Tokens, prompt: Int[Tensor, "b n"], config: GenerationConfig, use_cache: bool = True
) -> Int[Tensor, "b m"]:
    """Greedy search: the most likely token at each step."""
    return _generate(
        IncrementalDecoder(model, context, use_cache), prompt, config, lambda scores, position: scores.argmax(1)
    )


def sample(
    model: TextDecoder,
    context: Tokens,
    prompt: Int[Tensor, "b n"],
    config: GenerationConfig,
    draws: Float[Tensor, "b longest"],
    top_p: float = 0.9,
    top_k: int = 50,
    use_cache: bool = True,
) -> Int[Tensor, "b m"]:
    """Nucleus sampling (Holtzman et al. 2020) among the `top_k` most likely tokens.

    `draws`: random numbers in [0, 1), one row per text and one column per position, so that a text does not depend on
    the other texts of the batch. A token is found by inverting the cumulative distribution.
    """

    def choose(scores: Tensor, position: int) -> Tensor:
        best, tokens = _nucleus(scores, top_p, top_k)
        probability = best.softmax(1)
        passed = (probability.cumsum(1) <= draws[:, position, None]).sum(1)
        last = (probability > 0).sum(1) - 1  # rounding may leave the sum below a draw
        return tokens.gather(1, passed.minimum(last)[:, None]).squeeze(1)

    return _generate(IncrementalDecoder(model, context, use_cache), prompt, config, choose)


def top_p_filter(scores: Float[Tensor, "b v"], top_p: float, top_k: int) -> Float[Tensor, "b v"]:
    """The scores of the fewest tokens that have probability `top_p` among the `top_k` best; −inf elsewhere.

    Source: Holtzman et al. 2020, section 3.1. The official BLIP uses top_k 50, its library's default.
    """
    best, tokens = _nucleus(scores, top_p, top_k)
    return torch.full_like(scores, -math.inf).scatter(1, tokens, best)


def _nucleus(scores: Tensor, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """The `top_k` best scores in descending order, −inf beyond the nucleus, and their tokens.

    Equal scores are ordered by token. Avoids sorting the vocabulary at every step.
    """
    best, tokens = scores.topk(min(top_k, scores.shape[1]))
    tokens, order = tokens.sort(dim=1)
    best, order = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    tokens, probability = tokens.gather(1, order), best.softmax(1)
    better = probability.cumsum(1) - probability  # total probability of all better tokens
    return best.masked_fill(better >= top_p, -math.inf), tokens


@torch.no_grad()
def _generate(
    decoder: IncrementalDecoder, ids: Tensor, config: GenerationConfig, choose: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """Appends tokens until all texts have ended; `choose`: from next-token scores and position to tokens."""
    unfinished = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    while ids.shape[1] < config.max_length and unfinished.any():
        token = choose(config.constrain(ids, decoder.next_token_logits(ids)), ids.shape[1])
        ids = torch.cat([ids, torch.where(unfinished, token, config.pad_token_id)[:, None]], 1)
        unfinished = unfinished & (token != config.eos_token_id)
    return ids
