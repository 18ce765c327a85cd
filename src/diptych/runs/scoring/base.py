"""One scorer per task: from a trained run and what is asked of it to metrics, predictions and examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn

from diptych.config.data import ImageSettings
from diptych.config.run import Evaluation, Finetune, Pretrain
from diptych.data.images.loading import ImageLoader
from diptych.data.loader import Skipped
from diptych.data.sources.base import BadSample
from diptych.runs.embedders import shown_images
from diptych.runs.qualitative_examples import Shown

T = TypeVar("T")
SHOWN = 12  # examples in the report


@dataclass(frozen=True)
class EvaluatedModel:
    """A trained run, and what is asked of it."""

    run: Pretrain | Finetune
    facts: dict[str, Any]
    module: nn.Module
    asked: Evaluation
    device: torch.device

    @property
    def model(self) -> Any:
        """The model within: whoever asks it for a verb looks first whether it has it."""
        return self.module.get_submodule("model")

    @property
    def images(self) -> ImageSettings:
        """Pictures as the run saw them, but never augmented."""
        return replace(self.run.images, augment=False)

    @property
    def shows(self) -> ImageSettings | ImageLoader:
        """What the run's model is shown of them: the pixels, or what a frozen network or a detector sees there."""
        return shown_images(self.run)


@dataclass(frozen=True)
class Result:
    """Metrics, one row per sample, what was skipped, and other files to write (name → JSON). `shown` makes the report's
    examples, which are drawn after the metrics are written: a picture that cannot be drawn costs no metric.
    """

    metrics: dict[str, float]
    predictions: list[dict[str, Any]] = field(default_factory=list)
    shown: Callable[[], Sequence[Shown]] = tuple
    skipped: list[Skipped] = field(default_factory=list)
    files: dict[str, Any] = field(default_factory=dict)


def draw_examples(items: Sequence[T], example: Callable[[T], Shown]) -> list[Shown]:
    """The example of each item, but of those whose pictures cannot be read: models of regions and of stored features are scored
    without opening a picture.
    """
    found: list[Shown] = []
    for item in items:
        with suppress(BadSample):
            found.append(example(item))
    return found


def evenly_spaced(items: Sequence[T], most: int) -> Sequence[T]:
    """At most `most` of them, evenly from first to last."""
    return [items[len(items) * i // most] for i in range(most)] if len(items) > most else items
