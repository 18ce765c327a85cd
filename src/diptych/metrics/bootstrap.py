"""Bootstrapped confidence intervals: photographs are drawn with replacement, and metrics are computed anew."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

SAMPLES = 1000
SHARE = 0.95
FEWEST = 5
"""Photographs, below which no interval is computed: of so few, most draws are alike."""
_AT_ONCE = 2**22  # counts in memory


@dataclass(frozen=True)
class Resampled:
    """Metrics as functions of how often each photograph is drawn.

    Args:
        photographs: their number.
        metrics: from the counts of each draw to each metric's value in it; with all counts 1 the value of the
            evaluation. NaN: undefined, as a type of question that was not drawn. Metrics that no draw changes, as
            chance levels and numbers of samples, are not among them, and have no interval.
        samples: draws; fewer where one takes long.
    """

    photographs: int
    metrics: Callable[[Int[np.ndarray, "draws photographs"]], Mapping[str, Float[np.ndarray, " draws"]]]
    samples: int = SAMPLES


class Scores(dict[str, float]):
    """The metrics of an evaluation by name, with the 95 % confidence interval of each that has one.

    Attributes:
        intervals: by metric the ends of the interval.
        resampling: how they were computed, or why there is none.
    """

    def __init__(
        self,
        metrics: Mapping[str, float],
        intervals: Mapping[str, tuple[float, float]] | None = None,
        resampling: str = "",
    ):
        super().__init__(metrics)
        self.intervals: dict[str, tuple[float, float]] = dict(intervals or {})
        self.resampling = resampling

    @classmethod
    def of(cls, metrics: Mapping[str, float], resampled: Resampled | None) -> Scores:
        """The metrics with the intervals that follow from `resampled`.

        Raises ValueError if `resampled`, with each photograph once, has other values than `metrics`.
        """
        if resampled is None or not resampled.photographs:
            return cls(metrics)
        n, samples = resampled.photographs, resampled.samples
        for name, (value,) in resampled.metrics(np.ones((1, n), dtype=np.int64)).items():
            if not np.isclose(value, metrics.get(name, np.nan), rtol=1e-6, atol=1e-12, equal_nan=True):
                raise ValueError(f"{name}: resampled {value} of each photograph once, and {metrics.get(name)} measured")
        if n < FEWEST:
            return cls(metrics, {}, f"no intervals: {n} photographs, and at least {FEWEST} are needed")
        description = f"{SHARE:.0%} intervals from {samples} draws of {n} photographs with replacement (bootstrap)"
        return cls(metrics, intervals(resampled), description)


def interval(ends: tuple[float, float], scale: float = 1.0) -> str:
    """An interval as text: "[0.381, 0.443]"."""
    return f"[{scale * ends[0]:.3g}, {scale * ends[1]:.3g}]"


def with_interval(scores: Scores, name: str, digits: int = 4) -> str:
    """A metric as text, with its interval if it has one: "0.412 [0.381, 0.443]"."""
    ends = scores.intervals.get(name)
    return f"{scores[name]:.{digits}g}" + (f" {interval(ends)}" if ends else "")


def columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """The values of each metric in all rows, in alphabetical order of the metrics; None where a row has none."""
    names = sorted({name for row in rows for name in row})
    return {name: [row.get(name) for row in rows] for name in names}


def means(values: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """The mean of each metric over the rows that count for it."""
    present = {name: [value for value in column if value is not None] for name, column in values.items()}
    return {name: sum(column) / len(column) for name, column in present.items()}


def means_of_rows(photographs: Sequence[Hashable], values: Mapping[str, Sequence[float | None]]) -> Resampled:
    """The mean of each metric over rows; the rows of a photograph are drawn together.

    Args:
        photographs: the photograph of each row.
        values: of each metric the value in each row; None for rows that do not count for it.
    """
    return joined_means((photographs, values))


def joined_means(
    *tables: tuple[Sequence[Hashable], Mapping[str, Sequence[float | None]]],
) -> Resampled:
    """The means of `means_of_rows` of several tables of rows about the same photographs."""
    place: dict[Hashable, int] = {}
    for photographs, _ in tables:
        for photograph in photographs:
            place.setdefault(photograph, len(place))
    names, sums, terms = list[str](), list[np.ndarray](), list[np.ndarray]()
    for photographs, values in tables:
        owner = np.array([place[photograph] for photograph in photographs], dtype=np.int64)
        for name, column in values.items():
            row = np.array([np.nan if value is None else value for value in column], dtype=np.float64)
            names.append(name)
            sums.append(np.bincount(owner, np.nan_to_num(row), len(place)))
            terms.append(np.bincount(owner, ~np.isnan(row), len(place)))
    table = np.stack([*sums, *terms], 1) if names else np.zeros((len(place), 0))

    def metrics(counts: Int[np.ndarray, "draws photographs"]) -> dict[str, Float[np.ndarray, " draws"]]:
        totals, numbers = np.split((counts.astype(np.float64) @ table).T, 2)
        with np.errstate(invalid="ignore"):
            return dict(zip(names, totals / numbers, strict=True))

    return Resampled(len(place), metrics)


def intervals(resampled: Resampled, share: float = SHARE, seed: int = 0) -> dict[str, tuple[float, float]]:
    """The central `share` of each metric over draws of as many photographs, with replacement (percentile bootstrap).

    A metric that is undefined in every draw has none.

    Source: Efron and Tibshirani, An introduction to the bootstrap, 1993, chapter 13.
    """
    parts = [resampled.metrics(counts) for counts in draws(resampled.photographs, resampled.samples, seed)]
    tails = (1 - share) / 2
    ends: dict[str, tuple[float, float]] = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        values = values[~np.isnan(values)]
        if len(values):
            low, high = np.quantile(values, (tails, 1 - tails))
            ends[name] = float(low), float(high)
    return ends


def draws(photographs: int, samples: int, seed: int) -> Iterator[Int[np.ndarray, "draws photographs"]]:
    """How often each photograph is drawn, in `samples` draws of as many photographs; some draws at a time."""
    rng, at_once = np.random.default_rng(seed), max(1, _AT_ONCE // photographs)
    for first in range(0, samples, at_once):
        rows = min(at_once, samples - first)
        drawn = rng.integers(photographs, size=(rows, photographs)) + photographs * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * photographs).reshape(rows, photographs)
