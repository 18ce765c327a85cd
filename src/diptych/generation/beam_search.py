"""Beam search: several texts of each sample are followed at once, and the best finished one is given."""

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

COPY = -1e9  # the sum that a beam begins with while it is but a copy of another


def log_probability(logits: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
    return F.log_softmax(logits, -1)


@dataclass(frozen=True)
class BeamConfig:
    """How many texts are followed, and how finished ones are compared: by the sum of their tokens' scores over their
    length ** `length_penalty`.

    A search is over once no open text, as it is, scores better than the worst finished one, of which it keeps as many as
    it has beams; with `early`, as soon as there are so many. `groups` divide the beams into searches of their own, and
    the best text of all is given: a token loses `diversity` for each beam of an earlier group that takes it in the same
    step (Vijayakumar et al. 2018, section 4; at 0 all groups are one and the same search).

    `end_counts`: whether the end is a part of the length: in newer versions of Hugging Face's library, on which open_clip
    runs; not in 4.25, on which BLIP does. `score`: what of the logits is summed; open_clip sums the logits as they are.
    """

    num_beams: int = 3
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool = False
    count_eos: bool = False
    score: Callable[[Tensor], Tensor] = log_probability

    def __post_init__(self) -> None:
        if self.num_beams < 1 or self.num_beam_groups < 1 or self.num_beams % self.num_beam_groups:
            raise ValueError(f"{self.num_beams} beams do not divide into {self.num_beam_groups} groups")


@dataclass(frozen=True)
class GenerationOutput:
    """Texts, and for each the score by which the search chose it."""

    ids: Int[Tensor, "b m"]
    scores: Float[Tensor, " b"]


class BeamSearch:
    """One search of one sample: `size` beams and as many finished texts, the best ones."""

    def __init__(self, size: int, beams: BeamConfig, rules: GenerationConfig):
        self.size, self.beams, self.rules, self.over = size, beams, rules, False
        self.finished: list[tuple[float, Tensor]] = []

    def step(
        self, ids: Int[Tensor, "size n"], sums: list[float], tokens: list[int], origins: list[int]
    ) -> tuple[list[float], list[int], list[int]]:
        """Given the best continuations, the same of those that the beams go on with; those that end here are finished."""
        if self.over:
            return [0.0] * self.size, [self.rules.pad_token_id] * self.size, [0] * self.size
        length = ids.shape[1] + self.beams.count_eos
        going = []
        for rank, (total, token, origin) in enumerate(zip(sums, tokens, origins, strict=True)):
            if token != self.rules.eos_token_id:
                going.append((total, token, origin))
            elif rank < self.size:
                self.finish(ids[origin], total, length)
            if len(going) == self.size:
                break
        if len(self.finished) == self.size:
            worst = min(score for score, _ in self.finished)
            self.over = self.beams.early_stopping or worst >= sums[0] / length**self.beams.length_penalty
        return [x[0] for x in going], [x[1] for x in going], [x[2] for x in going]

    def finish(self, ids: Int[Tensor, " n"], total: float, length: int) -> None:
        """Takes a text in, if it is among the best."""
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
    rules: GenerationConfig,
    beams: BeamConfig,
    remember: bool = True,
) -> GenerationOutput:
    """The best text that is found of each sample; those that the longest length has cut off are among them."""
    b, size, device = len(prompt), beams.num_beams // beams.num_beam_groups, prompt.device
    reader = IncrementalDecoder(model, context, remember)
    reader.repeat_samples(beams.num_beams)
    searches = [[BeamSearch(size, beams, rules) for _ in range(beams.num_beam_groups)] for _ in range(b)]
    ids = prompt[:, None, None].expand(b, beams.num_beam_groups, size, -1)
    totals = torch.full((b, beams.num_beam_groups, size), COPY, device=device)
    totals[:, :, 0] = 0
    first = (
        torch.arange(b * beams.num_beam_groups, device=device).view(b, -1, 1) * size
    )  # of each search, among all beams
    while ids.shape[-1] < rules.max_length and not all(search.over for group in searches for search in group):
        rows = ids.flatten(0, 2)
        scores = rules.allowed(rows, beams.score(reader.next_token_logits(rows))).view(*totals.shape, -1)
        token, origin = torch.zeros_like(ids[..., 0]), torch.zeros_like(ids[..., 0])
        for g in range(beams.num_beam_groups):
            taken = F.one_hot(token[:, :g].flatten(1), scores.shape[-1]).sum(1)
            summed = scores[:, g] - beams.diversity_penalty * taken[:, None] + totals[:, g, :, None]
            best, place = summed.flatten(1).topk(2 * size)  # enough to go on with even if every beam may end
            words, beam = place % scores.shape[-1], place // scores.shape[-1]
            for i in range(b):
                going = searches[i][g].step(ids[i, g], best[i].tolist(), words[i].tolist(), beam[i].tolist())
                totals[i, g], token[i, g], origin[i, g] = (torch.tensor(x, device=device) for x in going)
        order = (first + origin).flatten()
        reader.reorder(order)
        ids = torch.cat([rows[order], token.view(-1, 1)], 1).view(*totals.shape, -1)
    for i, g in ((i, g) for i in range(b) for g in range(beams.num_beam_groups) if not searches[i][g].over):
        for text, total in zip(ids[i, g], totals[i, g].tolist(), strict=True):
            searches[i][g].finish(text, total, ids.shape[-1])
    return _written([_best(group) for group in searches], rules)


def _best(searches: list[BeamSearch]) -> tuple[float, Tensor]:
    """Of equals the last."""
    return sorted((text for search in searches for text in search.finished), key=lambda text: text[0])[-1]


def _written(best: list[tuple[float, Tensor]], rules: GenerationConfig) -> GenerationOutput:
    """Side by side, each with the end behind it where there is room, then pads."""
    longest = min(max(len(ids) for _, ids in best) + 1, rules.max_length)
    rows = [
        torch.cat([ids, ids.new_tensor([rules.eos_token_id] + [rules.pad_token_id] * longest)])[:longest]
        for _, ids in best
    ]
    return GenerationOutput(torch.stack(rows), torch.tensor([score for score, _ in best], device=rows[0].device))
