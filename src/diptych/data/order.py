"""The order in which examples are visited: in training deterministic, length-aware, and known at any point without history."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from diptych.data.examples import Examples
from diptych.data.source import DataError
from diptych.inputs import Batch
from diptych.keyed import permutation


class Order:
    """Which examples each global batch holds.

    Every epoch is a permutation keyed by (seed, epoch); within pools of `pool` batches examples are sorted by length
    and the batches then shuffled, so that a batch holds texts of like length. What does not fill a batch waits for
    another epoch. Nothing depends on the number of ranks or workers, nor on what was asked before.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, seed: int, batch: int, pool: int = 50):
        self.lengths, self.seed, self.batch, self.pool = np.asarray(lengths), seed, batch, pool
        self.per_epoch = len(self.lengths) // batch
        if not self.per_epoch:
            raise DataError(f"a batch of {batch} is more than all {len(self.lengths)} examples; lower the batch size")
        self._epoch = lru_cache(2)(self._plan)

    def ids_of(self, k: int) -> np.ndarray:
        """The `batch` examples of global batch k = 0, 1, …"""
        epoch, place = divmod(k, self.per_epoch)
        return self._epoch(epoch)[place]

    def _plan(self, epoch: int) -> np.ndarray:
        """All batches of an epoch, ``(per_epoch, batch)``."""
        ids = permutation(self.seed, epoch, len(self.lengths))[: self.per_epoch * self.batch]
        pools = np.split(ids, range(self.pool * self.batch, len(ids), self.pool * self.batch))
        ids = np.concatenate([p[np.argsort(self.lengths[p], kind="stable")] for p in pools])
        return ids.reshape(self.per_epoch, self.batch)[permutation(self.seed, epoch, self.per_epoch, "batches")]

    def __getstate__(self):
        return {k: v for k, v in vars(self).items() if k != "_epoch"}

    def __setstate__(self, state):
        vars(self).update(state)
        self._epoch = lru_cache(2)(self._plan)


class Shuffled:
    """Examples in an order drawn by `seed`, each drawn for by its own id as before.

    In the order of the data a batch holds all captions of each picture, which losses that compare samples take for others'.
    """

    def __init__(self, examples: Examples, seed: int):
        self.examples, self.ids = examples, permutation(seed, 0, len(examples), "held out")

    def __len__(self) -> int:
        return len(self.examples)

    def length(self, index: int) -> int:
        return self.examples.length(int(self.ids[index]))

    def load(self, index: int, seed: int, step: int) -> Any:
        return self.examples.load(int(self.ids[index]), seed, step)

    def collate(self, loaded: list[Any], ids: Sequence[int], seed: int, step: int) -> Batch:
        return self.examples.collate(loaded, self.ids[list(ids)].tolist(), seed, step)
