"""Beam search as BEiT-3's official decoder does it, for models that fill one [MASK] after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from diptych.generation.beam_search import COPY
from diptych.generation.decoding import GenerationConfig, IncrementalDecoder
from diptych.modules.tokens import Tokens
from diptych.protocols import TextDecoder

CANDIDATES = 3  # continuations looked at, per beam


@torch.no_grad()
def fill_blanks(
    model: TextDecoder, context: Tokens, prompt: Int[Tensor, "b n"], rules: GenerationConfig, blank: int, beams: int = 1,
    length_penalty: float = 0.6, remember: bool = True,
) -> Int[Tensor, "b longest"]:  # fmt: skip
    """The text of each sample whose sum of log probabilities over length ** `length_penalty` is best.

    Differs from beam search elsewhere (`beams.beam_search`), all as the official decoder: one finished text is kept per
    sample, whatever the beams; any continuation among the best three per beam may finish; a finished text holds the
    `blank` that would have been filled next, before its end, and counts it; at the longest length the last word is dropped.
    """
    b, device = len(prompt), prompt.device
    reader = IncrementalDecoder(model, context, remember)
    reader.repeat_samples(beams)
    ids = prompt.repeat_interleave(beams, 0)
    totals = torch.full((b, beams), COPY, device=device)
    totals[:, 0] = 0
    kept = [MaskedBeams(rules, length_penalty) for _ in range(b)]
    while ids.shape[1] + 2 <= rules.max_length and not all(one.over for one in kept):
        scores = F.log_softmax(reader.next_token_logits(ids), -1)
        vocabulary = scores.shape[1]
        best, place = (totals.view(-1, 1) + scores).view(b, -1).topk(CANDIDATES * beams)
        origin, token = torch.zeros_like(place[:, :beams]), torch.full_like(place[:, :beams], rules.pad_token_id)
        for i, one in enumerate(kept):
            going = one.step(ids.view(b, beams, -1)[i], blank, best[i].tolist(), place[i].tolist(), vocabulary)
            for j, (total, word, beam) in enumerate(going):
                totals[i, j], token[i, j], origin[i, j] = total, word, beam
        order = (origin + torch.arange(b, device=device)[:, None] * beams).flatten()
        reader.reorder(order)
        ids = torch.cat([ids[order], token.view(-1, 1)], 1)
    rows = [F.pad(one.text, (0, rules.max_length - len(one.text)), value=rules.pad_token_id) for one in kept]
    return torch.stack(rows)


class MaskedBeams:
    """The best finished text of one sample, its end behind it."""

    def __init__(self, rules: GenerationConfig, length_penalty: float):
        self.rules, self.length_penalty = rules, length_penalty
        self.text, self.score, self.over = torch.empty(0, dtype=torch.long), -torch.inf, False

    def step(
        self, ids: Int[Tensor, "beams n"], blank: int, sums: list[float], places: list[int], vocab_size: int
    ) -> list[tuple[float, int, int]]:
        """The continuations (sum, word, beam) to go on with, as many as beams; none where the search is over."""
        hopeful = sums[0] / (self.rules.max_length - 1) ** self.length_penalty  # the best that could still come
        self.over = self.over or self.score >= hopeful
        if self.over:
            return []
        length = ids.shape[1] + 1  # the blank counts
        going: list[tuple[float, int, int]] = []
        for total, place in zip(sums, places, strict=True):
            beam, word = divmod(place, vocab_size)
            if word != self.rules.eos_token_id and length + 1 < self.rules.max_length:
                going.append((total, word, beam))
            elif (score := total / length**self.length_penalty) > self.score:
                self.score, self.text = score, torch.cat([ids[beam], ids.new_tensor([blank, self.rules.eos_token_id])])
            if len(going) == len(ids):
                break
        return going
