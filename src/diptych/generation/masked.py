"""Beam search of BEiT-3's official decoder, for models that generate by filling one [MASK] after another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from diptych.generation.beam_search import COPY
from diptych.generation.decoding import GenerationConfig, IncrementalDecoder
from diptych.modules.tokens import Tokens
from diptych.protocols import TextDecoder

CANDIDATES = 3  # continuations considered per beam


@torch.no_grad()
def fill_blanks(
    model: TextDecoder,
    context: Tokens,
    prompt: Int[Tensor, "b n"],
    config: GenerationConfig,
    blank: int,
    beams: int = 1,
    length_penalty: float = 0.6,
    use_cache: bool = True,
) -> Int[Tensor, "b longest"]:
    """The text of each sample with the best sum of log probabilities over length ** `length_penalty`.

    `blank`: the id of [MASK]. Unlike `beam_search`, as in the official decoder: one finished text is kept per sample,
    whatever the number of beams; any of the best three continuations per beam may finish; a finished text contains the
    `blank` that would have been filled next, before its end token, and counts it; at the maximum length the last word
    is dropped.
    """
    b, device = len(prompt), prompt.device
    decoder = IncrementalDecoder(model, context, use_cache, beams)
    ids = prompt.repeat_interleave(beams, 0)
    totals = torch.full((b, beams), COPY, device=device)
    totals[:, 0] = 0
    searches = [MaskedBeams(config, length_penalty) for _ in range(b)]
    while ids.shape[1] + 2 <= config.max_length and not all(search.over for search in searches):
        scores = F.log_softmax(decoder.next_token_logits(ids), -1)
        vocabulary = scores.shape[1]
        best, index = (totals.view(-1, 1) + scores).view(b, -1).topk(CANDIDATES * beams)
        origin, token = torch.zeros_like(index[:, :beams]), torch.full_like(index[:, :beams], config.pad_token_id)
        for i, search in enumerate(searches):
            continued = search.step(ids.view(b, beams, -1)[i], blank, best[i].tolist(), index[i].tolist(), vocabulary)
            for j, (total, word, beam) in enumerate(continued):
                totals[i, j], token[i, j], origin[i, j] = total, word, beam
        order = (origin + torch.arange(b, device=device)[:, None] * beams).flatten()
        decoder.reorder(order)
        ids = torch.cat([ids[order], token.view(-1, 1)], 1)
    rows = [
        F.pad(search.text, (0, config.max_length - len(search.text)), value=config.pad_token_id) for search in searches
    ]
    return torch.stack(rows)


class MaskedBeams:
    """The search of one sample: its best finished text, with the end token."""

    def __init__(self, config: GenerationConfig, length_penalty: float):
        self.config, self.length_penalty = config, length_penalty
        self.text, self.score, self.over = torch.empty(0, dtype=torch.long), -torch.inf, False

    def step(
        self, ids: Int[Tensor, "beams n"], blank: int, sums: list[float], indices: list[int], vocab_size: int
    ) -> list[tuple[float, int, int]]:
        """The continuations (sum, word, beam) of the next step, as many as beams; none if the search is over."""
        attainable = sums[0] / (self.config.max_length - 1) ** self.length_penalty  # upper bound of later scores
        self.over = self.over or self.score >= attainable
        if self.over:
            return []
        length = ids.shape[1] + 1  # the blank counts
        continued: list[tuple[float, int, int]] = []
        for total, index in zip(sums, indices, strict=True):
            beam, word = divmod(index, vocab_size)
            if word != self.config.eos_token_id and length + 1 < self.config.max_length:
                continued.append((total, word, beam))
            elif (score := total / length**self.length_penalty) > self.score:
                self.score, self.text = score, torch.cat([ids[beam], ids.new_tensor([blank, self.config.eos_token_id])])
            if len(continued) == len(ids):
                break
        return continued
