"""Image classification: one class per image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from diptych.batch import Batch, Image
from diptych.config import tasks as settings
from diptych.config.run import Finetune
from diptych.data.loader import SkipCounter
from diptych.data.sources.division import say_division
from diptych.data.sources.labelled import Labelled, LabelledExamples, LabelledImages
from diptych.inference.embedders import image_input
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import ModelSettings, RunError
from diptych.metrics.bootstrap import means_of_rows
from diptych.models.configs import ClassifierModel, Model, model_name
from diptych.protocols import ChanceLoss, ImageClassifier
from diptych.report import AnswerExample
from diptych.tasks.common import evaluation_rows, required, sample_counts
from diptych.tasks.definition import (
    MAX_EXAMPLES,
    FineTuning,
    Labels,
    Result,
    Task,
    draw_examples,
    evenly_spaced,
    seed_without_effect,
    trained_with,
)

BATCH = 128  # images classified at once in evaluation
TOP_K = 5  # classes kept in predictions


class Classification(nn.Module):
    """A training step: cross entropy of the class indices ``labels["class"]`` (b,)."""

    def __init__(self, model: ImageClassifier, num_classes: int):
        super().__init__()
        self.model = model
        self.weights = {"classification": 1.0}
        self.chance_losses = {
            "classification": ChanceLoss(math.log(num_classes), "uniform over classes", "the image is not used yet")
        }

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "classification", "classification/accuracy")

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.model.classify(required(batch.image, "image")).float()
        return self.losses(logits, batch.labels["class"], counts)

    def losses(self, logits: Tensor, classes: Tensor, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        right = (logits.argmax(1) == classes).sum().float()
        return {
            "classification": F.cross_entropy(logits, classes, reduction="sum") / counts["classification"],
            "classification/accuracy": right.detach() / counts["classification/accuracy"],
        }


def evaluate(loaded: LoadedModel, config: settings.Classification) -> Result:
    """Top-1 and top-5 accuracy, with the chance level.

    Raises:
        DataError: the data cannot be read.
        RunError: the run is of another task, or the data have other classes than it was trained on.
    """
    if lacks(loaded):
        raise RunError("classification needs a run of `diptych finetune classification`")
    source, classes = Labelled(Path(config.data), config.split), list(loaded.saved.labels)
    say_division(source)
    if source.classes != classes:
        raise RunError(
            f"{config.data} has {len(source.classes)} classes that are not the {len(classes)} that the run was trained "
            "on; expected the same names in the same order"
        )
    return accuracies(loaded, source, config)


def accuracies(
    loaded: LoadedModel,
    source: LabelledImages,
    config: settings.Evaluation,
    photograph: Callable[[int], int] = lambda index: index,
) -> Result:
    """Top-1 and top-5 accuracy of a classifier on labelled images, with the chance level.

    Args:
        photograph: the number of the photograph that an image is made of, for the confidence intervals.

    Raises DataError.
    """
    examples, classes = LabelledExamples(source, loaded.image_input), loaded.saved.labels
    counter = SkipCounter(config.max_skipped)

    def rows_of(batch: Batch) -> list[dict[str, Any]]:
        tops, rows = top_classes(loaded, required(batch.image, "image"), TOP_K), []
        for index, label, top in zip(batch.ids.tolist(), batch.labels["class"].tolist(), tops, strict=True):
            best, probable = top[0][0], [(classes[i], value) for i, value in top]
            row = {"index": index, "image": source.where(index), "class": classes[best], "truth": classes[label]}
            rows.append(row | {"probable": probable, "right": best == label, "among_first": label in dict(top)})
        return rows

    rows = evaluation_rows(loaded, examples, config, BATCH, counter, "classifying", rows_of)
    n, k = len(rows), min(TOP_K, len(classes))
    metrics = {
        "images": float(n),
        "skipped": float(counter.num_skipped),
        "accuracy": sum(row["right"] for row in rows) / n,
    }
    metrics |= {f"accuracy at {k}": sum(row["among_first"] for row in rows) / n, "chance": 1 / len(classes)}

    def example(row: dict[str, Any]) -> AnswerExample:
        image, right = source.image(row["index"]), float(row["right"])
        probable = [(name, probability) for name, probability in row["probable"][:3]]
        return AnswerExample(image, "what is this?", probable, row["truth"], right)

    chosen = evenly_spaced(rows, MAX_EXAMPLES)
    hits = {"accuracy": [row["right"] for row in rows], f"accuracy at {k}": [row["among_first"] for row in rows]}
    resampled = means_of_rows([photograph(row["index"]) for row in rows], hits)
    skipped = list(counter.skipped.values())
    return Result(metrics, rows, lambda: draw_examples(chosen, example), skipped, resampled=resampled)


def top_classes(loaded: LoadedModel, image: Image, k: int) -> list[list[tuple[int, float]]]:
    """The `k` most probable classes of each image, or all if there are fewer: indices and probabilities, best first."""
    top = loaded.model.classify(image).float().softmax(1).topk(min(k, len(loaded.saved.labels)), 1)
    rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [list(zip(indices, values, strict=True)) for indices, values in rows]


def predict(loaded: LoadedModel, batch: Batch) -> list[dict[str, Any]]:
    """The most probable class of each image with its probability, and the TOP_K most probable ones with theirs."""
    classes, tops = loaded.saved.labels, top_classes(loaded, required(batch.image, "image"), TOP_K)
    return [
        {"class": classes[top[0][0]], "probability": top[0][1], "probable": [[classes[i], p] for i, p in top]}
        for top in tops
    ]


def build_module(model: Any, config: ModelSettings, labels: Labels, options: settings.NoOptions) -> Classification:
    """The training step on a model with a classifier."""
    return Classification(model, len(labels.names))


def with_classifier(model: Model, labels: Labels) -> Model:
    """Settings of an image model with a classifier of these classes. Raises RunError if it has no classifier."""
    if not isinstance(model, ClassifierModel):
        raise RunError(
            f"classification needs a model with a classifier (ViT, CrossViT, BEiT3), not a {model_name(model)}"
        )
    return replace(model, num_classes=len(labels.names))


def training_examples(run: Finetune, split: str, labels: Labels, augment: bool) -> LabelledExamples:
    """Images of a split with their classes, half of them mirrored in training."""
    return LabelledExamples(Labelled(Path(run.data), split), image_input(run, augment), mirrored=augment)


def lacks(loaded: LoadedModel) -> str:
    """What a model lacks to classify images."""
    if isinstance(loaded.module, Classification):
        return ""
    return f"has no trained image classifier {trained_with(loaded)}"


TASK = Task(
    settings.Classification,
    evaluate,
    lacks,
    FineTuning(
        build_module,
        training_examples,
        labels=lambda run: Labels(tuple(Labelled(Path(run.data), run.split).classes)),
        config=with_classifier,
        own_head="head.",
        models=ClassifierModel,
        needs="with a classifier of images",
    ),
    predict,
    seed_without_effect,
)
