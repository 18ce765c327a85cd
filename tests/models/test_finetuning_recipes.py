"""Every system's own fine-tuning recipes: built at full size, and the first step at toy size."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from diptych.batch import AnswerTargets, Batch, Text
from diptych.config.objectives import ITM, ClassDistillation, Objectives
from diptych.config.run import Finetune, Pretrain
from diptych.config.serialization import from_json, to_json
from diptych.config.tasks import RetrievalOptions, VQAOptions
from diptych.models.albef.config import ALBEFConfig
from diptych.models.common_recipes import with_image_grid
from diptych.models.configs import CrossViTConfig
from diptych.runs.finetune import build
from diptych.runs.recipes import recipe, recipes
from diptych.tasks.definition import Labels
from tests.models.test_first_step import VOCABULARY, B, batch, toy

ANSWERS, PRIOR, CLASSES = ("yes", "no", "two"), (0.5, 0.3, 0.1), ("cat", "dog")
OWN = [name for name in recipes("Finetune") if not name.startswith("demo.")]


def small(run: Finetune) -> tuple[Finetune, Batch]:
    """The same run at toy size, and a batch for it."""
    if isinstance(run.model, CrossViTConfig):
        model = replace(
            run.model,
            image_sizes=(8, 12),
            patch_sizes=(4, 6),
            dims=(16, 16),
            num_heads=(2, 2),
            mlp_dims=(32, 32),
            stages=((1, 1, 0),),
        )
        run = replace(run, model=model)
        like = Pretrain(
            model=recipe("vit.base").model,
            objectives=Objectives(class_distillation=ClassDistillation()),
            images=run.images,
            training=run.training,
        )
    else:
        objectives = Objectives(itm=ITM())
        like = toy(
            Pretrain(
                model=run.model,
                objectives=objectives,
                images=run.images,
                training=run.training,
                embedders=run.embedders,
            )
        )
        run = replace(run, model=like.model, embedders=like.embedders)
        if run.task == "retrieval":
            run = replace(run, options=RetrievalOptions(negative_texts=2))
    draw = torch.Generator().manual_seed(1)
    false = torch.randint(10, VOCABULARY, (2 * B, 6), generator=draw)
    labels = {"targets": torch.rand(B, 3, generator=draw), "class": torch.tensor([0, 1, 1, 0])}
    inputs = batch(like)
    if inputs.regions is not None:  # the overlap of each region with the true box
        labels["regions"] = torch.rand(inputs.regions.mask.shape, generator=draw) * inputs.regions.mask
    inputs = replace(inputs, negative_texts=Text(false, torch.ones_like(false, dtype=torch.bool)), labels=labels)
    if isinstance(run.options, VQAOptions) and run.options.answers == "open":
        answers = Text(false[:, :4], torch.ones_like(false[:, :4], dtype=torch.bool))
        question = torch.arange(B).repeat_interleave(2)
        inputs = replace(inputs, answers=AnswerTargets(answers, question, torch.full((2 * B,), 0.5)))
    return run, inputs


def closed(run: Finetune) -> Finetune:
    """The same run with a classifier over answers in place of its answer decoder, if it has one."""
    if not isinstance(run.options, VQAOptions) or run.options.answers == "closed":
        return run
    has_depth = isinstance(run.model, ALBEFConfig)
    model = replace(run.model, decoder_depth=0) if has_depth else replace(run.model, variant="pretraining")
    return replace(run, model=model, options=VQAOptions(min_answer_count=run.options.min_answer_count))


def labels_of(run: Finetune) -> tuple[str, ...]:
    """The labels of a task's module: answers or classes."""
    return {"vqa": ANSWERS, "classification": CLASSES}.get(run.task, ())


def task_of(run: Finetune, prior: tuple[float, ...] | None = PRIOR) -> Any:
    """The task's module of a run with few labels."""
    return build(run, Labels(labels_of(run), prior if run.task == "vqa" else None))


@pytest.mark.parametrize("name", OWN)
def test_the_first_step_has_a_loss_and_gradients(name: str):
    run, inputs = small(recipe(name, "Finetune"))
    module = task_of(run).train()
    losses = module(inputs, module.num_terms(inputs))
    loss = losses[run.task]
    assert loss.isfinite() and loss > 0
    loss.backward()
    learning = [p for p in module.parameters() if p.requires_grad]
    assert sum(p.grad is not None and bool(p.grad.any()) for p in learning) > len(learning) / 2


@pytest.mark.parametrize("name", OWN)
def test_every_recipe_builds_at_full_size_and_survives_json(name: str):
    run = recipe(name, "Finetune")
    assert run.recipe == name and from_json(Finetune, json.loads(json.dumps(to_json(run)))) == run
    assert with_image_grid(run) == run or run.embedders.image != "own"
    with torch.device("meta"):
        assert task_of(run, prior=None).weights == {run.task: 1.0}


def test_every_fusion_model_has_recipes_for_vqa_and_retrieval():
    systems = ("albef", "beit3", "blip", "vilbert", "vilt", "visualbert", "vlmo")
    assert {f"{system}.vqa" for system in systems} <= set(OWN)
    ranking, contrasting = {"vilbert", "vilt"}, {"albef", "beit3", "blip", "vlmo"}
    assert {f"{system}.retrieval" for system in ranking} <= set(OWN)
    assert {f"{system}.retrieval" for system in contrasting} <= set(recipes())
