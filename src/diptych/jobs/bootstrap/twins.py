"""Images that come twice, and images of a test set among those to be learned from, by the cosines of their features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 1024  # images compared at a time


@dataclass(frozen=True)
class Twin:
    """The image that another is like, by its place, and how much."""

    of: int
    cosine: float


class Seen:
    """Unit vectors, and the nearest of them to any other: all pairs are compared, a block at a time."""

    def __init__(self, over: float, device: torch.device):
        self.over, self.device = over, device
        self.blocks: list[Tensor] = []
        self.places: list[int] = []

    def add(self, vectors: Float[np.ndarray, "n e"], places: list[int]) -> None:
        if places:
            self.blocks.append(torch.from_numpy(vectors).to(self.device))
            self.places += places

    def nearest(self, vectors: Float[np.ndarray, "n e"]) -> list[Twin | None]:
        """Of each vector the one seen that is most like it, where that is over the threshold; of equals the first."""
        asked = torch.from_numpy(vectors).to(self.device)
        best = torch.full((len(asked),), -2.0, device=self.device)
        place = torch.zeros(len(asked), dtype=torch.long, device=self.device)
        first = 0
        for block in self.blocks:
            for at in range(0, len(block), BLOCK):
                some = block[at : at + BLOCK]
                cosine, where = (asked @ some.T).max(1)
                better = cosine > best
                best, place = torch.where(better, cosine, best), torch.where(better, where + first + at, place)
            first += len(block)
        found = zip(best.tolist(), place.tolist(), strict=True)
        return [Twin(self.places[p], round(c, 4)) if c > self.over else None for c, p in found]

    def among(self, vectors: Float[np.ndarray, "n e"], places: list[int], stay: list[bool]) -> list[Twin | None]:
        """As `nearest`, of those seen and of those before it in `vectors`; those that `stay` and are like none are then seen."""
        found: list[Twin | None] = []
        for at in range(0, len(vectors), BLOCK):
            some = vectors[at : at + BLOCK]
            near, cosines, new = self.nearest(some), some @ some.T, np.zeros(len(some), dtype=bool)
            for i, twin in enumerate(near):
                own = np.where(new[:i], cosines[i, :i], -2.0)
                j = int(own.argmax()) if i else 0
                if i and own[j] > max(self.over, twin.cosine if twin else -2.0):
                    twin = Twin(places[at + j], round(float(own[j]), 4))
                found.append(twin)
                new[i] = twin is None and stay[at + i]
            self.add(some[new], [places[at + i] for i in np.flatnonzero(new)])
        return found
