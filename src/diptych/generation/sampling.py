"""One text at a time: greedy search and nucleus sampling."""

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
    model: TextDecoder, context: Tokens, prompt: Int[Tensor, "b n"], rules: GenerationConfig, remember: bool = True
) -> Int[Tensor, "b m"]:
    """At each step the best token."""
    return _written(IncrementalDecoder(model, context, remember), prompt, rules, lambda scores, at: scores.argmax(1))


def sample(
    model: TextDecoder, context: Tokens, prompt: Int[Tensor, "b n"], rules: GenerationConfig, draws: Float[Tensor, "b longest"],
    share: float = 0.9, most: int = 50, remember: bool = True,
) -> Int[Tensor, "b m"]:  # fmt: skip
    """At each step a token from the nucleus: the first, from the best down, with which it holds more than `draws` says.

    `draws` are uniform in [0, 1), a row for each text and a column for each place in it, so that what a text becomes does
    not hang on its neighbours.
    """

    def drawn(scores: Tensor, at: int) -> Tensor:
        best, tokens = _nucleus(scores, share, most)
        probability = best.softmax(1)
        passed = (probability.cumsum(1) <= draws[:, at, None]).sum(1)
        last = (probability > 0).sum(1) - 1  # rounding may leave the sum below a draw
        return tokens.gather(1, passed.minimum(last)[:, None]).squeeze(1)

    return _written(IncrementalDecoder(model, context, remember), prompt, rules, drawn)


def top_p_filter(scores: Float[Tensor, "b v"], share: float, most: int) -> Float[Tensor, "b v"]:
    """The scores of the fewest tokens that together have `share` of the probability of the `most` best; −inf elsewhere.

    Holtzman et al. 2020, section 3.1. The official BLIP samples from the 50 best because its library does by default.
    """
    best, tokens = _nucleus(scores, share, most)
    return torch.full_like(scores, -math.inf).scatter(1, tokens, best)


def _nucleus(scores: Tensor, share: float, most: int) -> tuple[Tensor, Tensor]:
    """The `most` best scores, −inf beyond the nucleus, from the best down (of equals the smaller token first), and their
    tokens: all that is drawn from, so that a vocabulary need not be sorted at every step.
    """
    best, tokens = scores.topk(min(most, scores.shape[1]))
    tokens, place = tokens.sort(dim=1)
    best, place = best.gather(1, place).sort(dim=1, descending=True, stable=True)
    tokens, probability = tokens.gather(1, place), best.softmax(1)
    before = probability.cumsum(1) - probability  # what the better ones have together: nothing for the best
    return best.masked_fill(before >= share, -math.inf), tokens


@torch.no_grad()
def _written(
    reader: IncrementalDecoder, ids: Tensor, rules: GenerationConfig, choose: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """`choose`: from the scores of all tokens, and the place that is to be filled, to the token."""
    going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    while ids.shape[1] < rules.max_length and going.any():
        token = choose(rules.allowed(ids, reader.next_token_logits(ids)), ids.shape[1])
        ids = torch.cat([ids, torch.where(going, token, rules.pad_token_id)[:, None]], 1)
        going = going & (token != rules.eos_token_id)
    return ids
