"""Beam search, also with diverse groups: the best finished texts of each sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from diptych.generation.decoding import GenerationConfig, IncrementalDecoder
from diptych.modules.tokens import Tokens
from diptych.protocols import TextDecoder

COPY = -1e9  # initial score of all beams but the first, which are copies of it


def log_probability(logits: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
    return F.log_softmax(logits, -1)


@dataclass(frozen=True)
class BeamConfig:
    """Options of beam search; names as in Hugging Face's `generate`.

    Args:
        num_beams: beam size, over all groups; a search keeps as many finished texts as it has beams.
        num_beam_groups: the beams are divided into independent searches, of which the best text is returned.
        diversity_penalty: subtracted from a token's score for each beam of an earlier group that takes it in the same
            step (Vijayakumar et al. 2018, section 4; at 0 all groups find the same texts).
        length_penalty: finished texts are ranked by the sum of their tokens' scores over length ** `length_penalty`.
        early_stopping: stop once enough texts are finished; else once no unfinished text, if it ended now, would score
            better than the worst finished one.
        count_eos: whether the end token counts in the length: as in newer versions of Hugging Face's library, which
            open_clip uses, and not as in 4.25, which BLIP uses.
        score: from logits to the scores that are summed; open_clip sums the logits themselves.
        num_return_sequences: how many of the finished texts are returned for each sample, at most `num_beams`.
    """

    num_beams: int = 3
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool = False
    count_eos: bool = False
    score: Callable[[Tensor], Tensor] = log_probability
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        if self.num_beams < 1 or self.num_beam_groups < 1 or self.num_beams % self.num_beam_groups:
            raise ValueError(f"num_beams {self.num_beams} is not divisible by num_beam_groups {self.num_beam_groups}")
        if not 1 <= self.num_return_sequences <= self.num_beams:
            raise ValueError(
                f"num_return_sequences must be in [1, num_beams], [1, {self.num_beams}]: got {self.num_return_sequences}"
            )


@dataclass(frozen=True)
class GenerationOutput:
    """Generated texts, each with its score in the search; several of one sample are adjacent, the best first."""

    ids: Int[Tensor, "texts m"]
    scores: Float[Tensor, " texts"]


class BeamSearch:
    """The search of one group of one sample: its `size` best finished texts."""

    def __init__(self, size: int, beams: BeamConfig, config: GenerationConfig):
        self.size, self.beams, self.config, self.over = size, beams, config, False
        self.finished: list[tuple[float, Tensor]] = []

    def step(
        self, ids: Int[Tensor, "size n"], sums: list[float], tokens: list[int], origins: list[int]
    ) -> tuple[list[float], list[int], list[int]]:
        """One step: from the best continuations (scores, tokens, beams) to the next beams'; finishes ended texts."""
        if self.over:
            return [0.0] * self.size, [self.config.pad_token_id] * self.size, [0] * self.size
        length = ids.shape[1] + self.beams.count_eos
        continued = []
        for rank, (total, token, origin) in enumerate(zip(sums, tokens, origins, strict=True)):
            if token != self.config.eos_token_id:
                continued.append((total, token, origin))
            elif rank < self.size:
                self.finish(ids[origin], total, length)
            if len(continued) == self.size:
                break
        if len(self.finished) == self.size:
            worst = min(score for score, _ in self.finished)
            self.over = self.beams.early_stopping or worst >= sums[0] / length**self.beams.length_penalty
        return [x[0] for x in continued], [x[1] for x in continued], [x[2] for x in continued]

    def finish(self, ids: Int[Tensor, " n"], total: float, length: int) -> None:
        """Adds a finished text, if it is among the best."""
        score = total / length**self.beams.length_penalty
        if len(self.finished) == self.size:
            worst = min(range(self.size), key=lambda i: self.finished[i][0])
            if score <= self.finished[worst][0]:
                return
            del self.finished[worst]
        self.finished.append((score, ids))


@torch.no_grad()
def beam_search(
    model: TextDecoder,
    context: Tokens,
    prompt: Int[Tensor, "b n"],
    config: GenerationConfig,
    beams: BeamConfig,
    use_cache: bool = True,
) -> GenerationOutput:
    """The best texts of each sample; texts cut off at the maximum length count as finished."""
    b, size, device = len(prompt), beams.num_beams // beams.num_beam_groups, prompt.device
    decoder = IncrementalDecoder(model, context, use_cache, beams.num_beams)
    searches = [[BeamSearch(size, beams, config) for _ in range(beams.num_beam_groups)] for _ in range(b)]
    ids = prompt[:, None, None].expand(b, beams.num_beam_groups, size, -1)
    totals = torch.full((b, beams.num_beam_groups, size), COPY, device=device)
    totals[:, :, 0] = 0
    # index of each search's first beam
    first = torch.arange(b * beams.num_beam_groups, device=device).view(b, -1, 1) * size
    while ids.shape[-1] < config.max_length and not all(search.over for group in searches for search in group):
        rows = ids.flatten(0, 2)
        scores = config.constrain(rows, beams.score(decoder.next_token_logits(rows))).view(*totals.shape, -1)
        token, origin = torch.zeros_like(ids[..., 0]), torch.zeros_like(ids[..., 0])
        for g in range(beams.num_beam_groups):
            taken = F.one_hot(token[:, :g].flatten(1), scores.shape[-1]).sum(1)
            summed = scores[:, g] - beams.diversity_penalty * taken[:, None] + totals[:, g, :, None]
            best, place = summed.flatten(1).topk(2 * size)  # enough to continue even if every beam ends
            words, beam = place % scores.shape[-1], place // scores.shape[-1]
            for i in range(b):
                continued = searches[i][g].step(ids[i, g], best[i].tolist(), words[i].tolist(), beam[i].tolist())
                totals[i, g], token[i, g], origin[i, g] = (torch.tensor(x, device=device) for x in continued)
        order = (first + origin).flatten()
        decoder.reorder(order)
        ids = torch.cat([rows[order], token.view(-1, 1)], 1).view(*totals.shape, -1)
    for i, g in ((i, g) for i in range(b) for g in range(beams.num_beam_groups) if not searches[i][g].over):
        for text, total in zip(ids[i, g], totals[i, g].tolist(), strict=True):
            searches[i][g].finish(text, total, ids.shape[-1])
    best = [text for group in searches for text in _best(group, beams.num_return_sequences)]
    return _padded(best, config)


def _best(searches: list[BeamSearch], number: int) -> list[tuple[float, Tensor]]:
    """The best finished texts, the best first; of equal scores the last first."""
    finished = [text for search in searches for text in search.finished]
    return sorted(finished, key=lambda text: text[0])[-number:][::-1]


def _padded(best: list[tuple[float, Tensor]], config: GenerationConfig) -> GenerationOutput:
    """The texts as one tensor, each with an end token if there is room, then padded."""
    longest = min(max(len(ids) for _, ids in best) + 1, config.max_length)
    rows = [
        torch.cat([ids, ids.new_tensor([config.eos_token_id] + [config.pad_token_id] * longest)])[:longest]
        for _, ids in best
    ]
    return GenerationOutput(torch.stack(rows), torch.tensor([score for score, _ in best], device=rows[0].device))
