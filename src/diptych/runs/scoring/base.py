"""What every scorer takes and returns: a trained run with its evaluation settings, and metrics with predictions."""

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
MAX_EXAMPLES = 12
"""Qualitative examples in the report."""


@dataclass(frozen=True)
class EvaluatedModel:
    """A trained run and the settings to evaluate it with.

    `facts`: what run.json records in addition to the settings (answers, classes, ...). `module`: the training step,
    with its weights loaded, on `device`.
    """

    run: Pretrain | Finetune
    facts: dict[str, Any]
    module: nn.Module
    config: Evaluation
    device: torch.device

    @property
    def model(self) -> Any:
        """The model inside the step. Callers check which protocol it implements before they call one of its methods."""
        return self.module.get_submodule("model")

    @property
    def image_settings(self) -> ImageSettings:
        """The run's image preprocessing, without augmentation."""
        return replace(self.run.images, augment=False)

    @property
    def image_input(self) -> ImageSettings | ImageLoader:
        """How images are loaded for the model: as pixels, as features of a frozen network, or as detected regions."""
        return shown_images(self.run)


@dataclass(frozen=True)
class Result:
    """Metrics, one prediction per sample, skipped samples, and other files to write (name → JSON content).

    `make_examples` builds the report's examples. It is called after the metrics are written, so that an image that
    cannot be drawn costs no metric.
    """

    metrics: dict[str, float]
    predictions: list[dict[str, Any]] = field(default_factory=list)
    make_examples: Callable[[], Sequence[Shown]] = tuple
    skipped: list[Skipped] = field(default_factory=list)
    files: dict[str, Any] = field(default_factory=dict)


def draw_examples(items: Sequence[T], example: Callable[[T], Shown]) -> list[Shown]:
    """The example of each item, without those whose image cannot be decoded.

    Models of regions or of cached features are scored without decoding images, so a bad image first shows up here.
    """
    examples: list[Shown] = []
    for item in items:
        with suppress(BadSample):
            examples.append(example(item))
    return examples


def evenly_spaced(items: Sequence[T], max_items: int) -> Sequence[T]:
    """At most `max_items` items, at equal distances from the first on."""
    return [items[len(items) * i // max_items] for i in range(max_items)] if len(items) > max_items else items
