"""Recipes: plain frozen values, each of which builds at its full size, and comes back from JSON as it was."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict, replace
from importlib import import_module

import pytest
import torch

from diptych.cli.arguments import recipe, recipes
from diptych.jobs import building
from diptych.jobs import finetune as job
from diptych.recipes import demo, finetune, learn, vilt
from diptych.recipes.models import ViLT
from diptych.recipes.published import PUBLISHED
from diptych.recipes.run import Finetune, Pretrain, thaw


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_builds_on_the_meta_device(name: str):
    run = recipe(name)
    with torch.device("meta"):
        module = building.build(run, guided=False)
    assert all(p.is_meta for p in module.parameters())
    assert any(weight > 0 for weight in module.weights.values())
    assert run.images.patch == getattr(run.model, "patch", 32)
    if isinstance(run.model, ViLT):
        with torch.device("meta"):
            assert job.build(finetune.retrieval(run), {}).weights == {"retrieval": 1.0}
            assert job.build(finetune.vqa(run), {"answers": ["yes", "no"]}).weights == {"vqa": 1.0}


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_comes_back_from_json(name: str):
    run = recipe(name)
    assert thaw(Pretrain, json.loads(json.dumps(asdict(run)))) == run
    if isinstance(run.model, ViLT):
        task = finetune.vqa(run)
        assert thaw(Finetune, json.loads(json.dumps(asdict(task)))) == task


@pytest.mark.parametrize("name", [name for name in recipes() if not name.startswith("demo.")])
def test_every_recipe_knows_its_name(name: str):
    assert recipe(name).recipe == name


def test_recipes_are_frozen():
    with pytest.raises(FrozenInstanceError):
        vilt.tiny().data = "elsewhere"  # type: ignore[misc]


def test_thaw_names_a_field_that_does_not_fit():
    told = asdict(vilt.tiny())
    with pytest.raises(ValueError, match=r"run\.training\.speed: no such field"):
        thaw(Pretrain, told | {"training": {"speed": 3}})
    with pytest.raises(ValueError, match=r"run\.model: fits none"):
        thaw(Pretrain, told | {"model": {"wide": 3}})
    with pytest.raises(ValueError, match=r"run\.model: fits none"):
        thaw(Pretrain, told | {"model": {"width": 3}})


def test_what_was_kept_before_a_field_existed_is_thawed_with_its_default():
    run = vilt.tiny()
    told = asdict(replace(run, model=replace(run.model, dropout=ViLT().dropout), most_patches=0))
    del told["model"]["dropout"], told["most_patches"], told["training"]["optimizer"]["eps"]
    assert thaw(Pretrain, told) == replace(run, model=replace(run.model, dropout=ViLT().dropout))


def test_what_is_published_is_told_of_models_that_are_here():
    for name, known in PUBLISHED.items():
        module, model = known.model
        assert module == name and hasattr(import_module(f"diptych.models.{module}"), model)
        assert all(len(file.sha256) in (0, 64) for file in known.weights)


def test_the_demo_compares_at_one_budget():
    for fresh in (demo.vqa(), demo.retrieval()):
        assert fresh.model == demo.pretraining().model and fresh.images == demo.pretraining().images
        assert replace(fresh, start="there").training == fresh.training
    assert demo.VQA.task == "vqa" and demo.RETRIEVAL.task == "retrieval"


def test_every_recipe_on_frozen_features_is_a_row_of_what_systems_learn():
    frozen = {name for name in recipes() if recipe(name).embed.image == "boxes"}
    told = [stage for row in learn.ROWS for stage in row.split("+")]
    assert frozen == set(told) and len(set(learn.ROWS)) == len(learn.ROWS)
