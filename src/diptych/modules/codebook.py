"""A codebook: vectors that stand for what lies near them, kept by moving means and not by gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

ROUNDS = 10  # of k-means


class CodeUsage(NamedTuple):
    """What a batch asked of a codebook: how often each code was the nearest, and the sum of what it was nearest to."""

    counts: Float[Tensor, " codes"]
    sums: Float[Tensor, "codes width"]


class Codebook(nn.Module):
    """Unit vectors, compared by cosine, each of which follows the mean of what it was nearest to (van den Oord et al. 2017,
    appendix A.1; BEiT v2, section 2.2).

    They begin as the means that the first batch gathers round, by ten rounds of k-means (official code, `kmeans_init`). A code
    that nothing was nearest to in `patience` batches is dead, and begins anew as something that was seen. All of it is state: it
    checkpoints, and is the same on every rank where all learn from the batch of all.

    Differs: k-means starts from rows at even distances where the official code draws them; it lets dead codes lie.
    """

    begun: Bool[Tensor, ""]
    vectors: Float[Tensor, "codes width"]
    frequency: Float[Tensor, " codes"]
    idle: Int[Tensor, " codes"]
    age: Int[Tensor, " codes"]

    def __init__(self, num_codes: int, dim: int, decay: float = 0.99, patience: int = 10):
        super().__init__()
        self.decay, self.patience = decay, patience
        self.register_buffer("begun", torch.tensor(False))
        self.register_buffer("vectors", F.normalize(torch.randn(num_codes, dim), dim=1))
        self.register_buffer("frequency", torch.full((num_codes,), 1 / num_codes))
        self.register_buffer("idle", torch.full((num_codes,), patience))  # batches since it was asked for
        self.register_buffer("age", torch.full((num_codes,), patience))  # batches since it began

    @torch.no_grad()
    def initialize(self, seen: Float[Tensor, "m width"]) -> None:
        """k-means of the first batch of all ranks, by cosine. Of fewer rows than codes, the other codes stay as drawn."""
        most = min(len(seen), len(self.vectors))
        self.vectors[:most] = seen[torch.arange(most, device=seen.device) * len(seen) // max(most, 1)]
        for _ in range(ROUNDS):
            counts, sums = self.usage(seen, self.nearest(seen))
            self.vectors.copy_(torch.where(counts[:, None] > 0, F.normalize(sums, dim=1), self.vectors))
        self.begun.fill_(True)

    def nearest(self, x: Float[Tensor, "n width"]) -> Int[Tensor, " n"]:
        """The code of each unit vector, in full precision: rounded cosines would be equal."""
        with torch.autocast(x.device.type, enabled=False):
            return (x.float() @ self.vectors.T).argmax(1)

    def usage(self, x: Float[Tensor, "n width"], codes: Int[Tensor, " n"]) -> CodeUsage:
        counts = torch.bincount(codes, minlength=len(self.vectors)).to(x.dtype)
        return CodeUsage(counts, torch.zeros_like(self.vectors).index_add_(0, codes, x))

    @torch.no_grad()
    def update(self, asked: CodeUsage, seen: Float[Tensor, "m width"]) -> None:
        """One step, by what the batch of all ranks asked; dead codes become some of what was `seen`, the longest idle first."""
        used = asked.counts > 0
        mean = F.normalize(asked.sums, dim=1)
        moved = F.normalize(self.decay * self.vectors + (1 - self.decay) * mean, dim=1)
        self.vectors.copy_(torch.where(used[:, None], moved, self.vectors))
        self.frequency.lerp_(asked.counts / asked.counts.sum().clamp(min=1), 1 - self.decay)
        self.idle.add_(1).masked_fill_(used, 0)
        self.age.add_(1)
        dead = (torch.minimum(self.idle, self.age) >= self.patience) & ~used
        anew = torch.where(dead, self.idle, -1).argsort(descending=True, stable=True)[: min(int(dead.sum()), len(seen))]
        self.vectors[anew], self.age[anew] = seen[: len(anew)], 0

    def unused(self) -> Float[Tensor, ""]:
        """The share of codes that nothing was nearest to in the last `patience` batches."""
        return (self.idle >= self.patience).float().mean()

    def entropy(self) -> float:
        """Of the codes' frequencies, in nats: what it costs to guess a code that one knows nothing about."""
        return torch.special.entr(self.frequency / self.frequency.sum()).sum().item()
