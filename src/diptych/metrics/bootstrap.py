"""Bootstrapped confidence intervals: photographs are drawn with replacement, and metrics are computed anew."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SAMPLES = 1000
SHARE = 0.95


@dataclass(frozen=True)
class Resampled:
    """Metrics as a function of how often each photograph occurs.

    `metrics`: from counts ``(photographs,)`` int64 to the metrics; with all counts 1 those of the evaluation.
    """

    photographs: int
    metrics: Callable[[np.ndarray], Mapping[str, float]]


def means_of_rows(photographs: Sequence[Hashable], values: Mapping[str, Sequence[float | None]]) -> Resampled:
    """The mean of each metric over rows; the rows of a photograph are drawn together.

    Args:
        photographs: of each row.
        values: the value of each row; None for rows that do not count for the metric.
    """
    place = {photograph: i for i, photograph in enumerate(dict.fromkeys(photographs))}
    owner = np.array([place[photograph] for photograph in photographs], dtype=np.int64)
    table = np.array([[np.nan if v is None else v for v in column] for column in values.values()], dtype=np.float64)
    sums = np.stack([np.bincount(owner, np.nan_to_num(column), len(place)) for column in table])
    numbers = np.stack([np.bincount(owner, ~np.isnan(column), len(place)) for column in table])

    def metrics(counts: np.ndarray) -> dict[str, float]:
        totals, terms = sums @ counts, numbers @ counts
        return {name: float(total / n) for name, total, n in zip(values, totals, terms, strict=True) if n}

    return Resampled(len(place), metrics)


def intervals(
    resampled: Resampled, samples: int = SAMPLES, share: float = SHARE, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The central `share` of each metric over `samples` draws of as many photographs (percentile bootstrap).

    Source: Efron and Tibshirani, An introduction to the bootstrap, 1993, chapter 13.
    """
    rng, n = np.random.default_rng(seed), resampled.photographs
    drawn: dict[str, list[float]] = {}
    for _ in range(samples):
        counts = np.bincount(rng.integers(n, size=n), minlength=n)
        for name, value in resampled.metrics(counts).items():
            drawn.setdefault(name, []).append(value)
    tails = (1 - share) / 2
    return {name: tuple(map(float, np.quantile(x, (tails, 1 - tails)))) for name, x in drawn.items()}  # type: ignore[misc]
