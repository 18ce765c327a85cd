"""Fine-tuning: a task's head on a pre-trained model, or on an untrained one (baseline)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diptych.checkpoints.mapping import strip_prefix
from diptych.checkpoints.positions import resize_state
from diptych.checkpoints.strict import load_strict
from diptych.config.run import Finetune
from diptych.config.tasks import FINETUNED, FinetuningOptions
from diptych.data.sources.splits import requested_split
from diptych.inference.embedders import input_embeddings
from diptych.inference.feature_extractors import check_frozen_features
from diptych.inference.folder import check_model, read_weights
from diptych.inference.saved_model import ModelSettings, RunError, read_config
from diptych.models.common_recipes import with_image_grid
from diptych.models.configs import Model, model_name
from diptych.modules.init import scale_init
from diptych.protocols import student_of
from diptych.runs import recipes
from diptych.runs.build import freeze
from diptych.runs.check_init import check_same_model
from diptych.runs.check_inputs import check_out
from diptych.runs.train import train
from diptych.runs.training_data import with_steps
from diptych.tasks.definition import NO_LABELS, FineTuning, Labels, fine_tuning
from diptych.training.distributed import processes
from diptych.training.recovery import locked_run_folder
from diptych.utils.state_dict import named_weights
from diptych.utils.terminal import echo


def build(run: Finetune, labels: Labels = NO_LABELS) -> nn.Module:
    """The task's module with initial weights drawn from the run's seed, and what `run.freeze` names frozen.

    Raises RunError: see `task_module` and `runs.build.freeze`.
    """
    torch.manual_seed(run.training.seed)
    module = task_module(run, run.task, run.options, labels, run.init_scale)
    freeze(student_of(module).get_submodule("model"), run.freeze)
    return module


def task_module(
    settings: ModelSettings, task: str, options: FinetuningOptions, labels: Labels = NO_LABELS, init_scale: float = 1.0
) -> nn.Module:
    """A task's module with initial weights.

    Args:
        options: of the task's fine-tuning.
        init_scale: factor on the initial weights of the model's linear layers.

    Raises:
        RunError: the task is unknown, or the model cannot do it.
    """
    part = fine_tuning(task)
    model = part.config(settings.model, labels).build(input_embeddings(settings))
    scale_init(model, init_scale)
    return part.module(model, settings, labels, options)


def init_from_pretrained(module: nn.Module, folder: Path, config: Model, part: FineTuning) -> None:
    """Initialises all weights of the model from a run, with position embeddings resized to the image size.

    The head starts as the task says: a ranking head as the ITM head of that run.

    Args:
        config: the settings of the module's model.
        part: how models are fine-tuned for the task.

    Raises:
        RunError, WeightsError: the run's model has other settings, or its weights do not fit.
    """
    before, state, model = read_config(folder).model, read_weights(folder), module.get_submodule("model")
    check_same_model(before, config, str(folder))
    trained = resize_state(model, strip_prefix(state, "model."), getattr(before, "grid", None))
    if part.own_head:
        body = {name: tensor for name, tensor in trained.items() if not name.startswith(part.own_head)}
        head = {name: tensor for name, tensor in named_weights(model).items() if name.startswith(part.own_head)}
        trained = head | body
    load_strict(model, trained, str(folder))
    part.initialize(module, state)


def finetune(run: Finetune, out: Path) -> None:
    """Fine-tunes a run into the folder `out`, or resumes it there. Writes and raises what `pretrain.pretrain` does."""
    part, expected = fine_tuning(run.task), FINETUNED[run.task].options
    if type(run.options) is not expected:
        raise RunError(f"options: expected {expected.__name__} for {run.task}, got {type(run.options).__name__}")
    part.check(run)
    check_out(run.data, out)
    run = replace(run, split=requested_split(run.split, run.data, FINETUNED[run.task].splits))
    with processes(run.training.device) as group, locked_run_folder(out, group):
        if group.main:
            echo(f"reading {run.data} ({run.split})")
        labels = part.labels(run)
        run = replace(run, model=part.config(run.model, labels))
        data = part.examples(run, run.split, labels, True)
        run = with_steps(run, data)
        module = build(run, labels)
        if run.init_from:
            init_from_pretrained(module, Path(run.init_from), run.model, part)
        facts = {"examples": len(data)}
        train(run, module, data, lambda: part.examples(run, "val", labels, False), facts, out, group, labels.names)


def inherited(folder: Path, run: Finetune, system_recipe: bool = False) -> Finetune:
    """A fine-tuning run with model, embedders, vocabulary and image settings of the run that it starts from.

    Args:
        system_recipe: `run` is a recipe of one system: it has image settings of its own, and fits its models only.

    Raises:
        RunError: the model of the run in `folder` cannot do the task, or its weights do not fit its settings.
    """
    before = read_config(folder)
    check_frozen_features(before)
    check_model(folder, before)
    if system_recipe:
        return _recipe_of_task(folder, run, before)
    part = fine_tuning(run.task)
    if not isinstance(before.model, part.models):
        raise RunError(f"{folder} contains a {model_name(before.model)}; {run.task} needs a model {part.needs}")
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
    if recipe not in [*FINETUNED, *recipes.recipes("Finetune")]:
        recipes.model_recipe(recipe)  # raises, with the nearest names
        raise RunError(f"{recipe} names a model: give a recipe, as diptych.list_models() lists them")
    system_recipe, start = recipe not in FINETUNED, values.get("init_from", "")
    if not system_recipe and not start:
        raise RunError(f"{recipe} needs init_from, the folder of a pre-trained run")
    run = recipes.finetuning_recipe(recipe)
    return recipes.with_settings(inherited(Path(start), run, system_recipe) if start else run, values)


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
