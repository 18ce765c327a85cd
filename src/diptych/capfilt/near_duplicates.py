"""Images that come twice, and images of a test set among those to be learned from, by the cosines of their features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 1024  # images compared at a time

USUAL = {"readout": 0.97, "cnn": 0.85}
"""The cosine over which two images are one, where none is asked for, as `python -m bench.alike` measured it (2026-11-21):
how many of the 18 million pairs of Flickr8k's 6,000 train photos are over it, and which share of copies of 300 of them. The
five pairs that the CNN finds are one photo twice and four series of one scene; of a BLIP's 81 those looked at have but a theme in common.

                        pairs   JPEG 75   JPEG 30   90 % cut out   70 % cut out   mirrored   half the size
    cnn, 0.85               5     100 %      97 %          100 %           95 %      100 %            20 %
    a BLIP, 0.97            3     100 %      41 %           83 %           32 %       85 %             2 %
    a BLIP, 0.95           81     100 %      70 %           97 %           74 %       98 %            15 %
    a CLIP, 0.90            3     100 %      52 %           88 %           47 %       78 %             3 %

A readout is trained to forget what a caption does not tell, and how far hangs on the run: for a test set's sake ask for cnn.
"""


@dataclass(frozen=True)
class Neighbour:
    """The image that another is like, by its place, and how much."""

    of: int
    cosine: float


class FeatureIndex:
    """Unit vectors, and the nearest of them to any other: all pairs are compared, BLOCK x BLOCK of them at a time.

    The vectors are held, the cosines are not. A million pictures of 1,280 numbers each (cnn) take 5 GB and 1.3e15 operations:
    some 3.5 hours of one core, at the 100 GFLOP/s that `among` reached on 20,000 (2026-11-21). It grows with their square.
    """

    def __init__(self, over: float, device: torch.device):
        self.over, self.device = over, device
        self.blocks: list[Tensor] = []
        self.places: list[int] = []

    def add(self, vectors: Float[np.ndarray, "n e"], places: list[int]) -> None:
        if not places:
            return
        new = torch.from_numpy(vectors).to(self.device)
        if self.blocks and len(self.blocks[-1]) < BLOCK:  # small units would make for small products
            new = torch.cat([self.blocks.pop(), new])
        self.blocks += new.split(BLOCK)
        self.places += places

    def nearest(self, vectors: Float[np.ndarray, "n e"]) -> list[Neighbour | None]:
        """Of each vector the one seen that is most like it, where that is over the threshold; of equals the first."""
        return [twin for at in range(0, len(vectors), BLOCK) for twin in self._nearest(vectors[at : at + BLOCK])]

    def _nearest(self, vectors: Float[np.ndarray, "n e"]) -> list[Neighbour | None]:
        """Of at most BLOCK vectors, so that a block of cosines is BLOCK x BLOCK, however many a unit has."""
        asked = torch.from_numpy(vectors).to(self.device)
        best = torch.full((len(asked),), -2.0, device=self.device)
        place = torch.zeros(len(asked), dtype=torch.long, device=self.device)
        for number, block in enumerate(self.blocks):
            cosine, where = (asked @ block.T).max(1)
            better = cosine > best
            best, place = torch.where(better, cosine, best), torch.where(better, where + number * BLOCK, place)
        found = zip(best.tolist(), place.tolist(), strict=True)
        return [Neighbour(self.places[p], round(c, 4)) if c > self.over else None for c, p in found]

    def among(self, vectors: Float[np.ndarray, "n e"], places: list[int], stay: list[bool]) -> list[Neighbour | None]:
        """As `nearest`, of those seen and of those before it in `vectors`; those that `stay` and are like none are then seen."""
        found: list[Neighbour | None] = []
        for at in range(0, len(vectors), BLOCK):
            some = vectors[at : at + BLOCK]
            near, cosines, new = self.nearest(some), some @ some.T, np.zeros(len(some), dtype=bool)
            for i, twin in enumerate(near):
                own = np.where(new[:i], cosines[i, :i], -2.0)
                j = int(own.argmax()) if i else 0
                if i and own[j] > max(self.over, twin.cosine if twin else -2.0):
                    twin = Neighbour(places[at + j], round(float(own[j]), 4))
                found.append(twin)
                new[i] = twin is None and stay[at + i]
            self.add(some[new], [places[at + i] for i in np.flatnonzero(new)])
        return found
