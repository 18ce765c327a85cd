"""Orientation: by how many quarter turns an image is rotated, for photographs whose camera did not record it.

Any images with captions are data: each is rotated by 0, 90, 180 and 270 degrees.

Source: Gidaris et al., Unsupervised representation learning by predicting image rotations, ICLR 2018.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PIL import Image as Pillow

from diptych.config import tasks as settings
from diptych.config.run import Finetune
from diptych.data.sources.base import Captioned
from diptych.data.sources.captions import open_captions
from diptych.data.sources.labelled import LabelledExamples
from diptych.inference.embedders import image_input
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import ModelSettings
from diptych.models.configs import ClassifierModel
from diptych.tasks.classification import Classification, accuracies, predict
from diptych.tasks.definition import FineTuning, Labels, Result, Task, trained_with

TURNS = Labels(("0 degrees", "90 degrees", "180 degrees", "270 degrees"))


class RotatedImages:
    """The images of a dataset, each with every rotation; the label is the number of quarter turns."""

    def __init__(self, source: Captioned):
        self.source, self.name, self.split = source, source.name, source.split

    def __len__(self) -> int:
        return len(TURNS.names) * len(self.source)

    def image(self, index: int) -> Pillow.Image:
        place, turns = divmod(index, len(TURNS.names))
        return self.source.image(place).rotate(90 * turns, expand=True)

    def label(self, index: int) -> int:
        return index % len(TURNS.names)

    def where(self, index: int) -> str:
        place, turns = divmod(index, len(TURNS.names))
        return f"{self.source.where(place)}, rotated by {TURNS.names[turns]}"


def build_module(model: Any, config: ModelSettings, labels: Labels, options: settings.NoOptions) -> Classification:
    """The training step: cross entropy of the number of turns."""
    return Classification(model, len(labels.names))


def training_examples(run: Finetune, split: str, labels: Labels, augment: bool) -> LabelledExamples:
    """Rotated images of a split with their numbers of turns."""
    return LabelledExamples(RotatedImages(open_captions(run.data, split)), image_input(run, augment))


def evaluate(loaded: LoadedModel, config: settings.Orientation) -> Result:
    """Accuracy over all rotations of the images of a split."""
    images = RotatedImages(open_captions(config.data, config.split))
    return accuracies(loaded, images, config, photograph=lambda index: index // len(TURNS.names))


def lacks(loaded: LoadedModel) -> str:
    """What a model lacks to tell rotations apart."""
    if loaded.saved.task == settings.Orientation.task:
        return ""
    return f"was trained for another task {trained_with(loaded)}"


TASK = Task(
    settings.Orientation,
    evaluate,
    lacks,
    FineTuning(
        build_module,
        training_examples,
        labels=lambda run: TURNS,
        config=lambda model, labels: replace(model, num_classes=len(labels.names)),
        own_head="head.",
        models=ClassifierModel,
        needs="with a classifier of images",
    ),
    predict,
)
