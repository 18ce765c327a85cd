"""What every scorer returns: metrics, predictions and examples for the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from diptych.data.loader import Skipped
from diptych.data.sources.base import BadSample
from diptych.runs.qualitative_examples import QualitativeExample

T = TypeVar("T")
MAX_EXAMPLES = 12
"""Qualitative examples in the report."""


@dataclass(frozen=True)
class Result:
    """Metrics, one prediction per sample, skipped samples, and other files to write (name → JSON content).

    `make_examples` builds the report's examples. It is called after the metrics are written, so that an image that
    cannot be drawn costs no metric.
    """

    metrics: dict[str, float]
    predictions: list[dict[str, Any]] = field(default_factory=list)
    make_examples: Callable[[], Sequence[QualitativeExample]] = tuple
    skipped: list[Skipped] = field(default_factory=list)
    files: dict[str, Any] = field(default_factory=dict)


def draw_examples(items: Sequence[T], example: Callable[[T], QualitativeExample]) -> list[QualitativeExample]:
    """The example of each item, without those whose image cannot be decoded.

    Models of regions or of cached features are scored without decoding images, so a bad image first shows up here.
    """
    examples: list[QualitativeExample] = []
    for item in items:
        with suppress(BadSample):
            examples.append(example(item))
    return examples


def evenly_spaced(items: Sequence[T], max_items: int) -> Sequence[T]:
    """At most `max_items` items, at equal distances from the first on."""
    return [items[len(items) * i // max_items] for i in range(max_items)] if len(items) > max_items else items
