"""Counter-based random numbers, which do not depend on the order of draws or on the process.

Every random choice in Diptych (masked words, negative images, crops, the order of an epoch) is a pure function of
``(seed, step, sample id, stream)``. This gives exact resume, results that do not depend on the number of ranks, and
golden tests that can supply the choices.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The SplitMix64 finaliser, a bijection of 64-bit words whose output passes BigCrush.

    Source: Steele et al., OOPSLA 2014.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_words(seed: int, step: int, ids: Sequence[int] | np.ndarray, stream: str, n: int) -> np.ndarray:
    """Uniform 64-bit words, shape ``(len(ids), n)``; one `stream` for each purpose, so that draws are independent."""
    with np.errstate(over="ignore"):
        key = np.full((1,), zlib.crc32(stream.encode()), dtype=np.uint64)
        for part in (seed, step):
            key = _mix(key * _GOLDEN + np.uint64(part % 2**64) + _GOLDEN)
        rows = _mix(key * _GOLDEN + np.asarray(ids, dtype=np.int64).astype(np.uint64) + _GOLDEN)
        columns = np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN
        return _mix(rows[:, None] + columns[None, :])


def uniform(seed: int, step: int, ids: Sequence[int] | np.ndarray, stream: str, n: int) -> np.ndarray:
    """Uniform float64 in [0, 1), shape ``(len(ids), n)``."""
    return (random_words(seed, step, ids, stream, n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def generator(seed: int, step: int, sample: int, stream: str) -> np.random.Generator:
    """A numpy generator for one sample, for code that draws an unknown number of times (augmentation, rendering)."""
    return np.random.Generator(np.random.PCG64(random_words(seed, step, [sample], stream, 2)[0].tolist()))


def permutation(seed: int, epoch: int, n: int, stream: str = "order") -> np.ndarray:
    """A permutation of ``range(n)``, int64: the order in which an epoch visits its samples."""
    return np.argsort(random_words(seed, epoch, np.arange(n), stream, 1)[:, 0], kind="stable")
