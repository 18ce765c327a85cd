"""Near-duplicate images, within a dataset and between it and a test set, by cosine similarity of image features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK_SIZE = 1024  # images compared at a time

DEFAULT_COSINE = {"embedding": 0.97, "cnn": 0.85}
"""The default cosine over which two images are near duplicates, by kind of feature.

Measured by `python -m bench.alike` (2026-11-21): the pairs over it among the 18 million of Flickr8k's 6,000 train
photos, and the share of altered copies of 300 of them. The five pairs of the CNN are one photo twice and four series of
one scene; of the 81 pairs of a BLIP, those inspected have only a theme in common.

                        pairs   JPEG 75   JPEG 30   90 % cut out   70 % cut out   mirrored   half the size
    cnn, 0.85               5     100 %      97 %          100 %           95 %      100 %            20 %
    a BLIP, 0.97            3     100 %      41 %           83 %           32 %       85 %             2 %
    a BLIP, 0.95           81     100 %      70 %           97 %           74 %       98 %            15 %
    a CLIP, 0.90            3     100 %      52 %           88 %           47 %       78 %             3 %

An image embedding ("embedding") is trained to drop whatever captions do not mention, and how much depends on the run:
to protect a test set, use "cnn".
"""


@dataclass(frozen=True)
class Neighbour:
    """The index of the most similar image, and the cosine similarity."""

    index: int
    cosine: float


class FeatureIndex:
    """Exact nearest neighbours among unit vectors; all pairs are compared, BLOCK x BLOCK at a time.

    Vectors are kept in memory, cosines are not. A million images of 1,280 features (cnn) take 5 GB and 1.3e15 FLOPs:
    some 3.5 hours of one core, at the 100 GFLOP/s that `find_and_add` reached on 20,000 (2026-11-21). Time grows with
    the square of their number.
    """

    def __init__(self, threshold: float, device: torch.device):
        self.threshold, self.device = threshold, device
        self.blocks: list[Tensor] = []
        self.indices: list[int] = []

    def add(self, vectors: Float[np.ndarray, "n e"], indices: list[int]) -> None:
        """Adds vectors, each with the index that `Neighbour.index` refers to it by."""
        if not indices:
            return
        new = torch.from_numpy(vectors).to(self.device)
        if self.blocks and len(self.blocks[-1]) < BLOCK_SIZE:  # small blocks would make small matrix products
            new = torch.cat([self.blocks.pop(), new])
        self.blocks += new.split(BLOCK_SIZE)
        self.indices += indices

    def nearest(self, vectors: Float[np.ndarray, "n e"]) -> list[Neighbour | None]:
        """The nearest added vector of each vector, None if it is not over the threshold; the first of equal ones."""
        starts = range(0, len(vectors), BLOCK_SIZE)
        return [neighbour for start in starts for neighbour in self._nearest(vectors[start : start + BLOCK_SIZE])]

    def _nearest(self, vectors: Float[np.ndarray, "n e"]) -> list[Neighbour | None]:
        """Results as from `nearest`, for at most BLOCK vectors, so that at most BLOCK x BLOCK cosines are in memory."""
        queries = torch.from_numpy(vectors).to(self.device)
        best = torch.full((len(queries),), -2.0, device=self.device)
        index = torch.zeros(len(queries), dtype=torch.long, device=self.device)
        for number, block in enumerate(self.blocks):
            cosine, where = (queries @ block.T).max(1)
            better = cosine > best
            best, index = torch.where(better, cosine, best), torch.where(better, where + number * BLOCK_SIZE, index)
        matches = zip(best.tolist(), index.tolist(), strict=True)
        return [Neighbour(self.indices[i], round(c, 4)) if c > self.threshold else None for c, i in matches]

    def find_and_add(
        self, vectors: Float[np.ndarray, "n e"], indices: list[int], keep: list[bool]
    ) -> list[Neighbour | None]:
        """Results as from `nearest`, also among earlier vectors of `vectors`, of which some are added.

        Those are added, and compared with later ones, that `keep` is True for and that have no neighbour.
        """
        neighbours: list[Neighbour | None] = []
        for start in range(0, len(vectors), BLOCK_SIZE):
            block = vectors[start : start + BLOCK_SIZE]
            near, cosines, new = self.nearest(block), block @ block.T, np.zeros(len(block), dtype=bool)
            for i, neighbour in enumerate(near):
                own = np.where(new[:i], cosines[i, :i], -2.0)
                j = int(own.argmax()) if i else 0
                if i and own[j] > max(self.threshold, neighbour.cosine if neighbour else -2.0):
                    neighbour = Neighbour(indices[start + j], round(float(own[j]), 4))
                neighbours.append(neighbour)
                new[i] = neighbour is None and keep[start + i]
            self.add(block[new], [indices[start + i] for i in np.flatnonzero(new)])
        return neighbours
