"""Fine-tuning: a task's head on a pre-trained model, or on an untrained one (baseline)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diptych.checkpoints.mapping import strip_prefix
from diptych.checkpoints.positions import resize_state
from diptych.checkpoints.strict import load_strict
from diptych.config.run import Finetune
from diptych.data.examples import Examples, QuestionExamples
from diptych.data.ranking import RankedExamples
from diptych.data.sources.ablations import AblatedQuestions
from diptych.data.sources.answers import answer_list, answer_prior
from diptych.data.sources.base import Questioned
from diptych.data.sources.captions import open_captions
from diptych.data.sources.labelled import Labelled, LabelledExamples
from diptych.data.sources.splits import requested_split
from diptych.data.sources.vqa import OWN, open_questions
from diptych.inference.embedders import image_input, input_embeddings
from diptych.inference.feature_extractors import check_frozen_features
from diptych.inference.folder import check_model, read_weights
from diptych.inference.saved_model import ModelSettings, RunError, read_config
from diptych.inference.tokenizer import tokenizer_of
from diptych.metrics.vqa import normalise_answer
from diptych.models.blip.checkpoint import SMOOTHING
from diptych.models.common_recipes import with_image_grid
from diptych.models.configs import (
    BLIPConfig,
    ClassifierModel,
    ImageOnlyModel,
    Model,
    has_answer_decoder,
    model_name,
    pooled_dim,
)
from diptych.modules.heads import ITMHead
from diptych.modules.init import scale_init
from diptych.protocols import FusionEncoder
from diptych.runs import recipes
from diptych.runs.check_init import check_same_model
from diptych.runs.check_inputs import check_out
from diptych.runs.train import train
from diptych.tasks.classification import Classification
from diptych.tasks.retrieval import Retrieval
from diptych.tasks.vqa import AnswerDecoder, ClosedVQA, OpenVQA
from diptych.training.distributed import processes
from diptych.training.recovery import locked_run_folder
from diptych.utils.state_dict import named_weights
from diptych.utils.terminal import echo

TASKS = ("vqa", "retrieval", "classification")
Task = ClosedVQA | OpenVQA | Retrieval | Classification


def build(run: Finetune, labels: Sequence[str] = (), prior: Sequence[float] | None = None) -> Task:
    """The task's module with initial weights drawn from the run's seed. Arguments and errors: see `task_module`."""
    torch.manual_seed(run.training.seed)
    return task_module(run, run.task, labels, run.init_scale, prior, run.negative_texts)


def task_module(
    settings: ModelSettings,
    task: str,
    labels: Sequence[str] = (),
    init_scale: float = 1.0,
    prior: Sequence[float] | None = None,
    negative_texts: int = 15,
) -> Task:
    """A task's module with initial weights.

    Args:
        labels: answers of vqa, or classes of classification.
        init_scale: factor on the initial weights of the model's linear layers.
        prior: of vqa, the mean score of each answer in training.
        negative_texts: of retrieval, negative texts per pair in training.

    Raises:
        RunError: the task is unknown, or the model cannot do it.
    """
    if task == "classification":
        classifier: Any = with_classifier(settings.model, len(labels)).build(input_embeddings(settings))
        return Classification(classifier, len(labels))
    model: Any = settings.model.build(input_embeddings(settings))
    scale_init(model, init_scale)
    if isinstance(settings.model, ImageOnlyModel) or not isinstance(model, FusionEncoder):
        raise RunError(f"{task} needs a model that fuses text and image; a {model_name(settings.model)} does not")
    if task == "vqa" and has_answer_decoder(settings.model) and isinstance(model, AnswerDecoder):
        blip = isinstance(settings.model, BLIPConfig)
        return OpenVQA(model, SMOOTHING) if blip else OpenVQA(model, double_first_token=True)
    if task == "vqa":
        return ClosedVQA(model, pooled_dim(settings.model), len(labels), prior=prior)
    if task == "retrieval":
        return Retrieval(model, pooled_dim(settings.model), negative_texts)
    raise RunError(f"task {task!r}: expected one of {', '.join(TASKS)}")


def with_classifier(model: Model, num_classes: int) -> Model:
    """Settings of an image model with a classifier of `num_classes`. Raises RunError if it has no classifier."""
    if not isinstance(model, ClassifierModel):
        raise RunError(
            f"classification needs a model with a classifier (ViT, CrossViT, BEiT3), not a {model_name(model)}"
        )
    return replace(model, num_classes=num_classes)


def questions(data: str, split: str, ablate: str, min_side: int) -> Questioned:
    """Questions of a split; with `ablate` "image" or "text" that part of each is hidden (baseline)."""
    source = open_questions(data, split, min_side=min_side)
    return AblatedQuestions(source, ablate) if ablate else source


def examples(run: Finetune, split: str, answers: list[str], augment: bool) -> Examples:
    """Examples of one split of the run's data.

    Args:
        answers: the answer vocabulary of vqa.
    """
    images, least = image_input(run, augment), run.images.shorter_side
    if run.task == "classification":
        return LabelledExamples(Labelled(Path(run.data), split), images, mirrored=augment)
    tokenizer = tokenizer_of(run)
    if run.task == "vqa":
        source = questions(run.data, split, run.ablate, least)
        return QuestionExamples(source, tokenizer, images, answers, normalise_answer)
    return RankedExamples(open_captions(run.data, split, min_side=least), tokenizer, images, run.negative_texts)


def init_from_pretrained(module: Task, folder: Path, config: Model) -> None:
    """Initialises all weights of the model from a run, with position embeddings resized to the image size.

    A ranking head starts as the ITM head of that run. A classifier stays at its initial weights, as its classes are
    others.

    Args:
        config: the settings of the module's model.

    Raises:
        RunError, WeightsError: the run's model has other settings, or its weights do not fit.
    """
    before, state, model = read_config(folder).model, read_weights(folder), module.get_submodule("model")
    check_same_model(before, config, str(folder))
    trained = resize_state(model, strip_prefix(state, "model."), getattr(before, "grid", None))
    if isinstance(module, Classification):
        body = {name: tensor for name, tensor in trained.items() if not name.startswith("head.")}
        trained = {name: tensor for name, tensor in named_weights(model).items() if name.startswith("head.")} | body
    load_strict(model, trained, str(folder))
    itm = strip_prefix(state, "heads.itm.")
    if isinstance(module, Retrieval) and itm:
        head = ITMHead(module.rank.linear.in_features)
        load_strict(head, itm, str(folder))
        module.init_from(head)


def finetune(run: Finetune, out: Path) -> None:
    """Fine-tunes a run into the folder `out`, or resumes it there. Writes and raises what `pretrain.pretrain` does."""
    if run.task == "vqa" and has_answer_decoder(run.model):
        raise RunError(
            f"a {model_name(run.model)} with an answer decoder can be evaluated for vqa, but not fine-tuned: start "
            "from a pre-training run"
        )
    check_out(run.data, out)
    run = replace(run, split=requested_split(run.split, run.data, OWN if run.task == "vqa" else ()))
    with processes(run.training.device) as group, locked_run_folder(out, group):
        if group.main:
            echo(f"reading {run.data} ({run.split})")
        labels: list[str] = []
        prior = None
        if run.task == "vqa":
            source = open_questions(run.data, run.split)
            labels = answer_list(source, normalise_answer, run.min_answer_count, run.max_answers)
            prior = answer_prior(source, labels, normalise_answer)
        if run.task == "classification":
            labels = Labelled(Path(run.data), run.split).classes
            run = replace(run, model=with_classifier(run.model, len(labels)))
        data = examples(run, run.split, labels, augment=True)
        module = build(run, labels, prior)
        if run.init_from:
            init_from_pretrained(module, Path(run.init_from), run.model)
        val = lambda: examples(run, "val", labels, augment=False)  # noqa: E731
        train(run, module, data, val, {"examples": len(data)}, out, group, labels)


def inherited(folder: Path, run: Finetune, own: bool = False) -> Finetune:
    """A fine-tuning run with model, embedders, vocabulary and image settings of the run that it starts from.

    Args:
        own: `run` is a system's own recipe: it has image settings of its own, and fits models of that system only.

    Raises:
        RunError: the model of the run in `folder` cannot do the task, or its weights do not fit its settings.
    """
    before = read_config(folder)
    check_frozen_features(before)
    check_model(folder, before)
    if own:
        return _recipe_of_task(folder, run, before)
    classifies = run.task == "classification"
    if not isinstance(before.model, ClassifierModel) if classifies else isinstance(before.model, ImageOnlyModel):
        needed = "with a classifier of images" if classifies else "that reads text and image"
        raise RunError(f"{folder} contains a {model_name(before.model)}; {run.task} needs a model {needed}")
    return replace(
        run,
        model=before.model,
        images=before.images,
        embedders=before.embedders,
        init_from=str(folder),
        recipe=before.recipe,
        vocabulary=before.vocabulary,
    )


def named_run(recipe: str, values: Mapping[str, Any]) -> Finetune:
    """The run of a fine-tuning recipe or of a task, which starts from the run `init_from`. Raises RunError."""
    if recipe not in [*recipes.TASK_RECIPES, *recipes.recipes("Finetune")]:
        recipes.model_recipe(recipe)  # raises, with the nearest names
        raise RunError(f"{recipe} names a model: give a recipe, as diptych.list_models() lists them")
    own, start = recipe not in recipes.TASK_RECIPES, values.get("init_from", "")
    if not own and not start:
        raise RunError(f"{recipe} needs init_from, the folder of a pre-trained run")
    run = recipes.finetuning_recipe(recipe)
    return recipes.with_settings(inherited(Path(start), run, own) if start else run, values)


def _recipe_of_task(folder: Path, run: Finetune, before: ModelSettings) -> Finetune:
    """A system's own recipe on the model in `folder`.

    Image size from the recipe; patch size and normalization from the model's run. With frozen features, all image
    settings are those of the model's run.
    """
    if type(before.model) is not type(run.model):
        kinds = model_name(run.model), model_name(before.model)
        raise RunError(f"{run.recipe} is for a {kinds[0]}, but {folder} contains a {kinds[1]}")
    run = replace(
        run, model=before.model, embedders=before.embedders, init_from=str(folder), vocabulary=before.vocabulary
    )
    if before.embedders.image != "own":
        return replace(run, images=before.images)
    trained = before.images
    images = replace(run.images, patch_size=trained.patch_size, mean=trained.mean, std=trained.std)
    return with_image_grid(replace(run, images=images))
