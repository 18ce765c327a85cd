"""Beam search: several texts of each sample are followed at once, and the best finished one is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from diptych.generation.decoding import Reader, Rules
from diptych.modules.tokens import Tokens
from diptych.protocols import Decodes

COPY = -1e9  # the sum that a beam begins with while it is but a copy of another


def log_probability(logits: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
    return F.log_softmax(logits, -1)


@dataclass(frozen=True)
class Beams:
    """How many texts are followed, and how finished ones are compared: by the sum of their tokens' scores over their
    length ** `length_penalty`.

    A search is over once no open text, as it is, scores better than the worst finished one, of which it keeps as many as
    it has beams; with `early`, as soon as there are so many. `groups` divide the beams into searches of their own, and
    the best text of all is given: a token loses `diversity` for each beam of an earlier group that takes it in the same
    step (Vijayakumar et al. 2018, section 4; at 0 all groups are one and the same search).

    `end_counts`: whether the end is a part of the length: in newer versions of Hugging Face's library, on which open_clip
    runs; not in 4.25, on which BLIP does. `score`: what of the logits is summed; open_clip sums the logits as they are.
    """

    beams: int = 3
    groups: int = 1
    diversity: float = 0.0
    length_penalty: float = 1.0
    early: bool = False
    end_counts: bool = False
    score: Callable[[Tensor], Tensor] = log_probability

    def __post_init__(self) -> None:
        if self.beams < 1 or self.groups < 1 or self.beams % self.groups:
            raise ValueError(f"{self.beams} beams do not divide into {self.groups} groups")


@dataclass(frozen=True)
class Written:
    """Texts, and for each the score by which the search chose it."""

    ids: Int[Tensor, "b m"]
    scores: Float[Tensor, " b"]


class Search:
    """One search of one sample: `size` beams and as many finished texts, the best ones."""

    def __init__(self, size: int, beams: Beams, rules: Rules):
        self.size, self.beams, self.rules, self.over = size, beams, rules, False
        self.finished: list[tuple[float, Tensor]] = []

    def step(
        self, ids: Int[Tensor, "size n"], sums: list[float], tokens: list[int], origins: list[int]
    ) -> tuple[list[float], list[int], list[int]]:
        """Given the best continuations, the same of those that the beams go on with; those that end here are finished."""
        if self.over:
            return [0.0] * self.size, [self.rules.pad] * self.size, [0] * self.size
        length = ids.shape[1] + self.beams.end_counts
        going = []
        for rank, (total, token, origin) in enumerate(zip(sums, tokens, origins, strict=True)):
            if token != self.rules.end:
                going.append((total, token, origin))
            elif rank < self.size:
                self.finish(ids[origin], total, length)
            if len(going) == self.size:
                break
        if len(self.finished) == self.size:
            worst = min(score for score, _ in self.finished)
            self.over = self.beams.early or worst >= sums[0] / length**self.beams.length_penalty
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
    model: Decodes, context: Tokens, prompt: Int[Tensor, "b n"], rules: Rules, beams: Beams, remember: bool = True
) -> Written:
    """The best text that is found of each sample; those that the longest length has cut off are among them."""
    b, size, device = len(prompt), beams.beams // beams.groups, prompt.device
    reader = Reader(model, context, remember)
    reader.spread(beams.beams)
    searches = [[Search(size, beams, rules) for _ in range(beams.groups)] for _ in range(b)]
    ids = prompt[:, None, None].expand(b, beams.groups, size, -1)
    totals = torch.full((b, beams.groups, size), COPY, device=device)
    totals[:, :, 0] = 0
    first = torch.arange(b * beams.groups, device=device).view(b, -1, 1) * size  # of each search, among all beams
    while ids.shape[-1] < rules.longest and not all(search.over for group in searches for search in group):
        rows = ids.flatten(0, 2)
        scores = rules.allowed(rows, beams.score(reader.next(rows))).view(*totals.shape, -1)
        token, origin = torch.zeros_like(ids[..., 0]), torch.zeros_like(ids[..., 0])
        for g in range(beams.groups):
            taken = F.one_hot(token[:, :g].flatten(1), scores.shape[-1]).sum(1)
            summed = scores[:, g] - beams.diversity * taken[:, None] + totals[:, g, :, None]
            best, place = summed.flatten(1).topk(2 * size)  # enough to go on with even if every beam may end
            words, beam = place % scores.shape[-1], place // scores.shape[-1]
            for i in range(b):
                going = searches[i][g].step(ids[i, g], best[i].tolist(), words[i].tolist(), beam[i].tolist())
                totals[i, g], token[i, g], origin[i, g] = (torch.tensor(x, device=device) for x in going)
        order = (first + origin).flatten()
        reader.take(order)
        ids = torch.cat([rows[order], token.view(-1, 1)], 1).view(*totals.shape, -1)
    for i, g in ((i, g) for i in range(b) for g in range(beams.groups) if not searches[i][g].over):
        for text, total in zip(ids[i, g], totals[i, g].tolist(), strict=True):
            searches[i][g].finish(text, total, ids.shape[-1])
    return _written([_best(group) for group in searches], rules)


def _best(searches: list[Search]) -> tuple[float, Tensor]:
    """Of equals the last."""
    return sorted((text for search in searches for text in search.finished), key=lambda text: text[0])[-1]


def _written(best: list[tuple[float, Tensor]], rules: Rules) -> Written:
    """Side by side, each with the end behind it where there is room, then pads."""
    longest = min(max(len(ids) for _, ids in best) + 1, rules.longest)
    rows = [torch.cat([ids, ids.new_tensor([rules.end] + [rules.pad] * longest)])[:longest] for _, ids in best]
    return Written(torch.stack(rows), torch.tensor([score for score, _ in best], device=rows[0].device))
