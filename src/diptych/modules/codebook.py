"""A vector-quantization codebook, updated by exponential moving averages instead of gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

ROUNDS = 10  # k-means iterations


class CodeUsage(NamedTuple):
    """A batch's assignments: how often each code was the nearest, and the sum of the vectors assigned to it."""

    counts: Float[Tensor, " codes"]
    sums: Float[Tensor, "codes width"]


class Codebook(nn.Module):
    """Unit-vector codes compared by cosine, each an exponential moving average of the vectors assigned to it.

    Initialised by ten rounds of k-means on the first batch (official code, `kmeans_init`). A code without assignments
    for `patience` batches is dead and is reset to a vector of the batch. All state is checkpointed, and equal on every
    rank if each rank updates with the global batch.

    Source: van den Oord et al. 2017, appendix A.1; BEiT v2 (Peng et al. 2022), section 2.2.
    Differs: k-means starts from evenly spaced rows (official code: random ones); the official code does
    not reset dead codes.
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
        self.register_buffer("idle", torch.full((num_codes,), patience))  # batches since the last assignment
        self.register_buffer(
            "age", torch.full((num_codes,), patience)
        )  # batches since the code was initialised or reset

    @torch.no_grad()
    def initialize(self, vectors: Float[Tensor, "m width"]) -> None:
        """Initialises the codes by k-means on the first global batch, by cosine.

        With fewer vectors than codes, the other codes keep their random values.
        """
        initialised = min(len(vectors), len(self.vectors))
        even = torch.arange(initialised, device=vectors.device) * len(vectors) // max(initialised, 1)
        self.vectors[:initialised] = vectors[even]
        for _ in range(ROUNDS):
            counts, sums = self.usage(vectors, self.nearest(vectors))
            self.vectors.copy_(torch.where(counts[:, None] > 0, F.normalize(sums, dim=1), self.vectors))
        self.begun.fill_(True)

    def nearest(self, x: Float[Tensor, "n width"]) -> Int[Tensor, " n"]:
        """The nearest code's index for each unit vector, in float32: in lower precision many cosines would tie."""
        with torch.autocast(x.device.type, enabled=False):
            return (x.float() @ self.vectors.T).argmax(1)

    def usage(self, x: Float[Tensor, "n width"], codes: Int[Tensor, " n"]) -> CodeUsage:
        counts = torch.bincount(codes, minlength=len(self.vectors)).to(x.dtype)
        return CodeUsage(counts, torch.zeros_like(self.vectors).index_add_(0, codes, x))

    @torch.no_grad()
    def update(self, usage: CodeUsage, candidates: Float[Tensor, "m width"]) -> None:
        """One moving-average step by the global batch's `usage`; dead codes become `candidates`, longest idle first."""
        used = usage.counts > 0
        mean = F.normalize(usage.sums, dim=1)
        moved = F.normalize(self.decay * self.vectors + (1 - self.decay) * mean, dim=1)
        self.vectors.copy_(torch.where(used[:, None], moved, self.vectors))
        self.frequency.lerp_(usage.counts / usage.counts.sum().clamp(min=1), 1 - self.decay)
        self.idle.add_(1).masked_fill_(used, 0)
        self.age.add_(1)
        dead = (torch.minimum(self.idle, self.age) >= self.patience) & ~used
        num_reset = min(int(dead.sum()), len(candidates))
        reset = torch.where(dead, self.idle, -1).argsort(descending=True, stable=True)[:num_reset]
        self.vectors[reset], self.age[reset] = candidates[: len(reset)], 0

    def unused(self) -> Float[Tensor, ""]:
        """The fraction of codes without assignments in the last `patience` batches."""
        return (self.idle >= self.patience).float().mean()

    def entropy(self) -> float:
        """Entropy of the code frequencies in nats: the chance level of code prediction."""
        return torch.special.entr(self.frequency / self.frequency.sum()).sum().item()
