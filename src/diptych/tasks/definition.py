"""Definition of a task: how models are fine-tuned for it, what a model lacks for it, and how it is evaluated.

Each file of this folder with a `Task` is found by the class of its evaluation in config/tasks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

import diptych.tasks
from diptych.batch import Batch
from diptych.config.run import Finetune
from diptych.config.tasks import EVALUATIONS, Evaluation, GalleryEvaluation
from diptych.data.examples import Examples
from diptych.data.loader import Skipped
from diptych.data.sources.base import BadSample
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import ModelSettings, RunError
from diptych.metrics.bootstrap import Resampled, Scores
from diptych.models.configs import ImageTextModel, Model
from diptych.report import QualitativeExample

T = TypeVar("T")
Settings = TypeVar("Settings", bound=Evaluation)
MAX_EXAMPLES = 12
"""Qualitative examples in the report."""


@dataclass(frozen=True)
class Labels:
    """The answers or classes of a task, in the order of its head's outputs; none for other tasks.

    `prior`: the mean score of each in training, if it is known.
    """

    names: tuple[str, ...] = ()
    prior: tuple[float, ...] | None = None


NO_LABELS = Labels()


@dataclass(frozen=True)
class Result:
    """Metrics, one prediction per sample, skipped samples, and other files to write (name → JSON content).

    `resampled`: metrics under a multiset of photographs, from which confidence intervals are computed; None if there is
    nothing to resample. `make_examples` builds the report's examples. It is called after the metrics are written, so
    that an image that cannot be drawn costs no metric.
    """

    metrics: dict[str, float]
    predictions: list[dict[str, Any]] = field(default_factory=list)
    make_examples: Callable[[], Sequence[QualitativeExample]] = tuple
    skipped: list[Skipped] = field(default_factory=list)
    files: dict[str, Any] = field(default_factory=dict)
    resampled: Resampled | None = None

    @cached_property
    def scores(self) -> Scores:
        """The metrics with their confidence intervals."""
        return Scores.of(self.metrics, self.resampled)


def _no_labels(run: Finetune) -> Labels:
    return NO_LABELS


def _same_model(model: Model, labels: Labels) -> Model:
    return model


def _leave_head(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Leaves the head as it is: nothing of pre-training initialises it."""


@dataclass(frozen=True)
class FineTuning:
    """How a model is fine-tuned for a task.

    Args:
        module: the training step, from the model, its settings, the labels, and the options of fine-tuning. Raises
            RunError for a model that cannot do the task.
        examples: the examples of a split of the run's data, with the run, the name of the split, the labels, and
            whether they are augmented.
        labels: the labels in a run's training data.
        config: the model's settings with a head for the labels, if the model itself has it.
        initialize: initialises the head from the weights of the run that the model comes from.
        own_head: names, in the model, of the head that is not taken from that run, as its classes are others.
        check: raises RunError for a run that cannot be trained, before anything is read.
        models: the config classes of models that can do the task.
        needs: what such a model has, for messages: follows "a model".
    """

    module: Callable[[Any, ModelSettings, Labels, Any], nn.Module]
    examples: Callable[[Finetune, str, Labels, bool], Examples]
    labels: Callable[[Finetune], Labels] = _no_labels
    config: Callable[[Model, Labels], Model] = _same_model
    initialize: Callable[[Any, Mapping[str, Tensor]], None] = _leave_head
    own_head: str = ""
    check: Callable[[Finetune], None] = lambda run: None
    models: Any = ImageTextModel
    needs: str = "that reads text and image"


Predict = Callable[[LoadedModel, Batch], list[dict[str, Any]]]
"""From a batch to the output of each of its samples, as the fields of a row of JSON."""


@dataclass(frozen=True)
class Task(Generic[Settings]):
    """A task.

    Args:
        settings: the class of its evaluation's settings, which has the name of the task.
        evaluate: its evaluation. Raises DataError, and RunError for a model that cannot do it.
        lacks: what a model lacks for it, as the end of a sentence that begins with the model; "" if nothing.
        fine_tuning: None for tasks that are part of pre-training.
        predict: the output for each image of a batch, with its text if there is one, as the fields of a row of JSON;
            `diptych predict` writes them. None for tasks of pre-trained models, which have commands of their own.
        unused: the settings of its evaluation that have no effect on a model, each with the reason;
            `seed_without_effect` if the evaluation draws no random numbers.
    """

    settings: type[Settings]
    evaluate: Callable[[LoadedModel, Settings], Result]
    lacks: Callable[[LoadedModel], str]
    fine_tuning: FineTuning | None = None
    predict: Predict | None = None
    unused: Callable[[LoadedModel, Settings], Mapping[str, str]] = lambda loaded, settings: {}


def seed_without_effect(loaded: LoadedModel, config: Evaluation) -> dict[str, str]:
    """The seed, which has no effect where at most the captions are shuffled, unless they are."""
    if not isinstance(config, GalleryEvaluation):
        return {"seed": "nothing is random in this evaluation"}
    return {} if config.shuffle_captions else {"seed": "only shuffle_captions is random in this evaluation"}


def trained_with(loaded: LoadedModel) -> str:
    """What a model was trained with, in brackets."""
    return f"(trained with {', '.join(sorted(loaded.losses)) or 'no objective'})"


@cache
def tasks() -> dict[str, Task[Any]]:
    """The tasks of this folder by name, in the order of config/tasks.py."""
    modules = [
        import_module(f"{diptych.tasks.__name__}.{module.name}") for module in iter_modules(diptych.tasks.__path__)
    ]
    found = {part.settings.task: part for module in modules for part in vars(module).values() if isinstance(part, Task)}
    return {name: found[name] for name in EVALUATIONS if name in found}


def fine_tuning(task: str) -> FineTuning:
    """How models are fine-tuned for a task. Raises RunError for a task that they are not fine-tuned for."""
    parts = {name: one.fine_tuning for name, one in tasks().items() if one.fine_tuning is not None}
    if task not in parts:
        raise RunError(f"task {task!r:.60}: expected one of {', '.join(parts)}")
    return parts[task]


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
