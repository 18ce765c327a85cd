"""Image classification: one class per image, by a trained classifier or, zero-shot, by texts that name the classes.

The classifier is the model's own (ViT, CrossViT, BEiT-3), or a linear layer on the pooled image features of a model
without one (CLIP, CoCa, ALBEF, BLIP, VLMo). With the trunk frozen (`freeze`) its training is a linear probe.

Zero-shot classification compares an image with prompts such as "a photo of a cat." (Radford et al., CLIP, ICML 2021,
section 3.1.4); the features of several prompts of a class are averaged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import Batch, Image, Regions
from diptych.config import tasks as settings
from diptych.config.run import Finetune
from diptych.data.loader import SkipCounter
from diptych.data.sources.base import DataError
from diptych.data.sources.division import say_division
from diptych.data.sources.labelled import (
    ClassifiedImages,
    LabelledExamples,
    LabelledImages,
    OfClasses,
    open_labelled,
)
from diptych.inference.embedders import image_input
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import ModelSettings, RunError
from diptych.metrics.bootstrap import means_of_rows
from diptych.models.configs import (
    ClassifierModel,
    MAEConfig,
    Model,
    PooledImageModel,
    image_encoder_of,
    model_name,
    pooled_image_dim,
)
from diptych.protocols import ChanceLoss
from diptych.report import AnswerExample
from diptych.tasks.common import encode_texts, evaluation_rows, required, sample_counts
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
from diptych.tasks.pair_scores import TEXT_BATCH, contrastive_scale, cosines, image_embedding, text_embedding
from diptych.utils.terminal import echo

BATCH = 128  # images classified at once in evaluation
TOP_K = 5  # classes kept in predictions
CONFUSIONS = 20  # most frequent pairs of classes kept in confusions.json
HEAD_STD = 0.01
"""Standard deviation of a new classifier's weights (MAE's official code, for linear probing)."""
CLASS_NAME = "{}"
"""What stands for the class in a prompt."""


class Classification(nn.Module):
    """A training step: cross entropy of the class indices ``labels["class"]`` (b,).

    Args:
        model: with a classifier of its own, or a dual encoder.
        head: from pooled image features to class logits; None for the model's own classifier.
    """

    def __init__(self, model: Any, num_classes: int, head: nn.Module | None = None):
        super().__init__()
        self.model, self.head = model, head
        self.weights = {"classification": 1.0}
        self.chance_losses = {
            "classification": ChanceLoss(math.log(num_classes), "uniform over classes", "the image is not used yet")
        }

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "classification", "classification/accuracy")

    def logits(self, image: Image | Regions) -> Float[Tensor, "b classes"]:
        """Class logits of each image."""
        if self.head is None:
            return self.model.classify(image)
        return self.head(self.model.pooled_features(self.model.encode_image(image))[0])

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.logits(image_of(batch)).float(), batch.labels["class"], counts)

    def losses(self, logits: Tensor, classes: Tensor, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        right = (logits.argmax(1) == classes).sum().float()
        return {
            "classification": F.cross_entropy(logits, classes, reduction="sum") / counts["classification"],
            "classification/accuracy": right.detach() / counts["classification/accuracy"],
        }


def image_of(batch: Batch) -> Image | Regions:
    """The images of a batch: pixels, or features of their regions. Raises ValueError if there are none."""
    return batch.image if batch.image is not None else required(batch.regions, "image")


@dataclass(frozen=True)
class Classifier:
    """Classes of images, and the function from a batch of images to their logits."""

    classes: Sequence[str]
    logits: Callable[[Image | Regions], Float[Tensor, "b classes"]]

    def top(self, image: Image | Regions, k: int) -> list[list[tuple[int, float]]]:
        """The `k` most probable classes of each image, or all if there are fewer: indices and probabilities."""
        top = self.logits(image).float().softmax(1).topk(min(k, len(self.classes)), 1)
        rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return [list(zip(indices, values, strict=True)) for indices, values in rows]


def trained_classifier(loaded: LoadedModel) -> Classifier:
    """The classifier that a model was fine-tuned with. Raises RunError if there is none."""
    if not isinstance(loaded.module, Classification):
        raise RunError(f"this {model_name(loaded.saved.model)} {lacks_classifier(loaded)}")
    return Classifier(loaded.saved.labels, loaded.module.logits)


def zero_shot_classifier(loaded: LoadedModel, classes: Sequence[str], prompts: Sequence[str]) -> Classifier:
    """The classifier of images by the cosine with texts that name the classes.

    Args:
        classes: names; underscores become blanks in prompts.
        prompts: texts with ``{}`` for the name. The unit vectors of a class's prompts are averaged, and the mean is
            normalised.

    Raises:
        RunError: the model has no trained joint space of images and texts, or fewer than two classes are given.
    """
    scale = contrastive_scale(loaded)
    if scale is None:
        raise RunError(f"this {model_name(loaded.saved.model)} {lacks_zero_shot(loaded)}")
    if len(set(classes)) < 2 or len(set(classes)) < len(classes):
        raise RunError(f"expected two or more different classes, got {', '.join(classes) or 'none'}")
    texts = [prompt.replace(CLASS_NAME, name.replace("_", " ")) for name in classes for prompt in prompts]
    vectors = [text_embedding(loaded, text).float() for text in encode_texts(loaded, texts, TEXT_BATCH)]
    features = torch.cat(vectors).unflatten(0, (len(classes), len(prompts)))  # classes prompts embed_dim
    weights = F.normalize(features.mean(1), dim=-1)  # classes embed_dim

    def logits(image: Image | Regions) -> Float[Tensor, "b classes"]:
        return scale * cosines(image_embedding(loaded, loaded.model.encode_image(image)), weights)

    return Classifier(classes, logits)


def classifier_of(loaded: LoadedModel, labels: Sequence[str] | None, prompts: Sequence[str]) -> Classifier:
    """The classifier that a model was trained with or, with `labels`, a zero-shot one among these."""
    return trained_classifier(loaded) if labels is None else zero_shot_classifier(loaded, labels, prompts)


def classes_in(text: str) -> list[str]:
    """Class names between commas, without empty ones."""
    return [name.strip() for name in text.split(",") if name.strip()]


def evaluate(loaded: LoadedModel, config: settings.Classification) -> Result:
    """Top-1 and top-5 accuracy, with the chance level; zero-shot for a model without a trained classifier.

    Raises:
        DataError: the data cannot be read.
        RunError: the model cannot classify, or the data have classes that it was not trained on.
    """
    if why := lacks(loaded):
        raise RunError(f"this {model_name(loaded.saved.model)} {why}")
    source = open_labelled(config.data, config.split, config.layout, min_side=loaded.image_settings.shorter_side)
    say_division(source)
    if isinstance(loaded.module, Classification):
        classifier = trained_classifier(loaded)
        return accuracies(loaded, with_classes(source, classifier.classes), config, classifier)
    classes = classes_in(config.labels) or source.classes
    chosen = source if list(classes) == list(source.classes) else OfClasses(source, classes)
    if not len(chosen):
        raise DataError(
            f"{config.data}: no image of {config.split} has one of the classes {', '.join(classes)}; its classes are "
            f"{', '.join(source.classes[:20])}"
        )
    if len(chosen) < len(source):
        echo(f"{len(source) - len(chosen)} of {len(source)} images have none of the {len(classes)} labels: left out")
    return accuracies(loaded, chosen, config, zero_shot_classifier(loaded, classes, config.prompts))


def with_classes(source: ClassifiedImages, classes: Sequence[str]) -> LabelledImages:
    """A source whose labels are places among `classes`. Raises RunError if it has a class that is none of them."""
    if list(source.classes) == list(classes):
        return source
    unknown = [name for name in source.classes if name not in set(classes)]
    if unknown:
        raise RunError(
            f"{source.name} has {len(unknown)} classes that are none of the {len(classes)} that the model was trained "
            f"on, such as {unknown[0]!r}: expected some of {', '.join(classes[:12])}{', …' if classes[12:] else ''}"
        )
    return OfClasses(source, classes)


def accuracies(
    loaded: LoadedModel,
    source: LabelledImages,
    config: settings.Evaluation,
    classifier: Classifier | None = None,
    photograph: Callable[[int], int] = lambda index: index,
) -> Result:
    """Top-1 and top-5 accuracy of a classifier on labelled images, with the chance level.

    Args:
        classifier: by default the one that the model was trained with.
        photograph: the number of the photograph that an image is made of, for the confidence intervals.

    Raises DataError.
    """
    classifier = classifier or trained_classifier(loaded)
    examples, classes = LabelledExamples(source, loaded.image_input), classifier.classes
    counter = SkipCounter(config.max_skipped)

    def rows_of(batch: Batch) -> list[dict[str, Any]]:
        tops, rows = classifier.top(image_of(batch), TOP_K), []
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
    values = {"accuracy": [row["right"] for row in rows], f"accuracy at {k}": [row["among_first"] for row in rows]}

    def example(row: dict[str, Any]) -> AnswerExample:
        image, right = source.image(row["index"]), float(row["right"])
        probable = [(name, probability) for name, probability in row["probable"][:3]]
        return AnswerExample(image, "what is this?", probable, row["truth"], right)

    chosen = evenly_spaced(rows, MAX_EXAMPLES)
    return Result(
        metrics,
        rows,
        lambda: draw_examples(chosen, example),
        list(counter.skipped.values()),
        {CONFUSIONS_FILE: confusions(rows)},
        means_of_rows([photograph(row["index"]) for row in rows], values),
    )


CONFUSIONS_FILE = "confusions.json"


def confusions(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The most frequent pairs of a true and another predicted class, with their numbers of images."""
    pairs = Counter((row["truth"], row["class"]) for row in rows if not row["right"])
    return [{"truth": a, "class": b, "images": n} for (a, b), n in pairs.most_common(CONFUSIONS)]


def predict(loaded: LoadedModel, batch: Batch) -> list[dict[str, Any]]:
    """The most probable class of each image with its probability, and the TOP_K most probable ones with theirs."""
    classifier = trained_classifier(loaded)
    classes, tops = classifier.classes, classifier.top(image_of(batch), TOP_K)
    return [
        {"class": classes[top[0][0]], "probability": top[0][1], "probable": [[classes[i], p] for i, p in top]}
        for top in tops
    ]


def build_module(model: Any, config: ModelSettings, labels: Labels, options: settings.NoOptions) -> Classification:
    """The training step on a model with a classifier, or with a linear one on its pooled image features."""
    num_classes = len(labels.names)
    if not isinstance(config.model, PooledImageModel):
        return Classification(model, num_classes)
    return Classification(model, num_classes, new_head(pooled_image_dim(config.model), num_classes))


def new_head(dim: int, num_classes: int) -> nn.Linear:
    """A linear classifier of features of `dim` values, whose logits are nearly equal."""
    head = nn.Linear(dim, num_classes)
    nn.init.trunc_normal_(head.weight, std=HEAD_STD)
    nn.init.zeros_(head.bias)
    return head


def with_classifier(model: Model, labels: Labels) -> Model:
    """Settings of a model that classifies images as one of these classes.

    An MAE becomes its encoder, a ViT. Raises RunError for a model without image features of its own.
    """
    model = image_encoder_of(model)
    if isinstance(model, ClassifierModel):
        return replace(model, num_classes=len(labels.names))
    if not isinstance(model, PooledImageModel):
        raise RunError(f"classification needs a model {NEEDS}, not a {model_name(model)}")
    return model


NEEDS = "with a classifier (ViT, CrossViT, BEiT3) or pooled image features (MAE, CLIP, CoCa, ALBEF, BLIP, VLMo)"


def classes_of(run: Finetune) -> Labels:
    """The classes of a run's training data. Raises DataError if there is only one."""
    classes = open_labelled(run.data, run.split, run.layout).classes
    if len(classes) < 2:
        raise DataError(f"{run.data}: all images have the class {classes[0]!r}; expected two classes or more")
    return Labels(tuple(classes))


def training_examples(run: Finetune, split: str, labels: Labels, augment: bool) -> LabelledExamples:
    """Images of a split with their classes, half of them mirrored in training."""
    # random crops show a part of an image, for which it is decoded at its full size
    min_side = None if augment and run.images.random_crop else run.images.shorter_side
    source = open_labelled(run.data, split, run.layout, min_side=min_side)
    return LabelledExamples(with_classes(source, labels.names), image_input(run, augment), mirrored=augment)


def lacks_classifier(loaded: LoadedModel) -> str:
    """What a model lacks to classify images as one of the classes that it was trained on."""
    if isinstance(loaded.module, Classification):
        return ""
    return f"has no trained image classifier {trained_with(loaded)}"


def lacks_zero_shot(loaded: LoadedModel) -> str:
    """What a model lacks to classify images by texts that name the classes."""
    if contrastive_scale(loaded) is not None:
        return ""
    return f"has no trained joint space of images and texts {trained_with(loaded)}"


def lacks(loaded: LoadedModel) -> str:
    """What a model lacks to classify images."""
    return lacks_classifier(loaded) and lacks_zero_shot(loaded) and lacks_classifier(loaded)


def unused(loaded: LoadedModel, config: settings.Classification) -> dict[str, str]:
    """The seed and, for a trained classifier, the settings of zero-shot classification."""
    if lacks_classifier(loaded):
        return seed_without_effect(loaded, config)
    why = "the model has a trained classifier, and classes of its own"
    return seed_without_effect(loaded, config) | dict.fromkeys(("labels", "prompts"), why)


TASK = Task(
    settings.Classification,
    evaluate,
    lacks,
    FineTuning(
        build_module,
        training_examples,
        labels=classes_of,
        config=with_classifier,
        own_head="head.",
        models=ClassifierModel | PooledImageModel | MAEConfig,
        needs=NEEDS,
    ),
    predict,
    unused,
)
