"""Recipes: frozen plain values, each of which builds at full size and survives JSON."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from importlib import import_module

import pytest
import torch

from diptych.benchmark import rows
from diptych.config.data import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD, Channels
from diptych.config.run import Finetune, Pretrain
from diptych.config.serialization import from_json, to_json
from diptych.models import common_recipes
from diptych.models.configs import PUBLISHED, ViLTConfig
from diptych.models.vilt import recipes as vilt
from diptych.runs import build as building
from diptych.runs import demo_recipes
from diptych.runs import finetune as job
from diptych.runs.recipes import recipe, recipes
from diptych.tasks.definition import Labels


@pytest.mark.quick("*.small", "*.tiny")
@pytest.mark.parametrize("name", recipes())
def test_every_recipe_builds_on_the_meta_device(name: str):
    run = recipe(name)
    with torch.device("meta"):
        module = building.build(run, guided=False)
    assert all(p.is_meta for p in module.parameters())
    assert any(weight > 0 for weight in module.weights.values())
    assert run.images.patch_size == getattr(run.model, "patch_size", 32)
    if isinstance(run.model, ViLTConfig):
        with torch.device("meta"):
            assert job.build(common_recipes.finetuning("retrieval", run)).weights == {"retrieval": 1.0}
            assert job.build(common_recipes.finetuning("vqa", run), Labels(("yes", "no"))).weights == {"vqa": 1.0}


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_survives_json(name: str):
    run = recipe(name)
    assert from_json(Pretrain, json.loads(json.dumps(to_json(run)))) == run, (
        'as run folders had it before models had a "kind"'
    )
    assert from_json(Pretrain, json.loads(json.dumps(to_json(run)))) == run
    if isinstance(run.model, ViLTConfig):
        task = common_recipes.finetuning("vqa", run)
        assert from_json(Finetune, json.loads(json.dumps(to_json(task)))) == task


@pytest.mark.parametrize("name", [name for name in recipes() if not name.startswith("demo.")])
def test_every_recipe_has_its_name(name: str):
    assert recipe(name).recipe == name


def test_recipes_are_frozen():
    with pytest.raises(FrozenInstanceError):
        vilt.tiny().data = "elsewhere"  # type: ignore[misc]


def test_from_json_names_a_field_that_does_not_fit():
    values = to_json(vilt.tiny())
    with pytest.raises(ValueError, match=r"run\.training\.speed: no such field"):
        from_json(Pretrain, values | {"training": {"speed": 3}})
    with pytest.raises(ValueError, match=r"run\.model: expected one of ViTConfig, .*, got kind None"):
        from_json(Pretrain, values | {"model": {"dim": 3}})


def test_json_has_the_kind_of_a_model_and_unknown_kinds_raise():
    run, values = vilt.tiny(), to_json(vilt.tiny())
    assert values["model"]["kind"] == "ViLTConfig" and "kind" not in values["training"]
    values["model"] = {"kind": "ViLTConfig", "dim": 96}
    assert from_json(Pretrain, values).model == ViLTConfig(dim=96)
    for name in ("Path", "os.system", ["ViLTConfig"], "Training"):
        with pytest.raises(ValueError, match=r"run\.model: expected one of ViTConfig, MAEConfig"):
            from_json(Pretrain, to_json(run) | {"model": {"kind": name}})


def test_a_missing_field_gets_its_default():
    run = vilt.tiny()
    values = to_json(replace(run, model=replace(run.model, dropout=ViLTConfig().dropout), max_patches=0))
    del values["model"]["dropout"], values["max_patches"], values["training"]["optimizer"]["eps"]
    assert from_json(Pretrain, values) == replace(run, model=replace(run.model, dropout=ViLTConfig().dropout))


@pytest.mark.parametrize(
    "names,mean,std",
    [
        (("albef.pretrain_4m", "albef.retrieval", "blip.pretrain_large", "blip.retrieval"), CLIP_MEAN, CLIP_STD),
        (("clip.base", "coca.open_clip"), CLIP_MEAN, CLIP_STD),
        (("mae.base",), IMAGENET_MEAN, IMAGENET_STD),
        (("vilt.base", "vit.base", "vlmo.base", "beit3.base", "beit3.visual_tokenizer"), HALF, HALF),
    ],
)
def test_images_are_normalised_as_in_the_official_code(names: tuple[str, ...], mean: Channels, std: Channels):
    for name in names:
        assert recipe(name).images.mean_std == (mean, std), name


@pytest.mark.parametrize("name", ["albef.vqa", "blip.vqa"])
def test_fine_tuning_normalises_images_as_pre_training(name: str):
    assert recipe(name, "Finetune").images.mean_std == (CLIP_MEAN, CLIP_STD)


def test_published_facts_name_existing_models():
    for name, published in PUBLISHED.items():
        module, model = published.model
        assert module == name and hasattr(import_module(f"diptych.models.{module}.model"), model)
        assert all(len(file.sha256) in (0, 64) for file in published.weights)


def test_the_demo_compares_at_equal_budgets():
    for fresh in (demo_recipes.vqa(), demo_recipes.retrieval()):
        assert fresh.model == demo_recipes.pretraining().model and fresh.images == demo_recipes.pretraining().images
        assert replace(fresh, init_from="there").training == fresh.training
    assert demo_recipes.VQA.task == "vqa" and demo_recipes.RETRIEVAL.task == "retrieval"


def test_every_recipe_on_frozen_features_is_in_the_benchmark():
    frozen = {name for name in recipes() if recipe(name).embedders.image == "hypercolumns"}
    benchmarked = [stage for row in rows.ROWS for stage in row.split("+")]
    assert frozen == set(benchmarked) and len(set(rows.ROWS)) == len(rows.ROWS)


def test_small_recipes_on_pixels_have_a_position_for_every_patch():
    for name in ("vlmo.small_images", "beit3.small_masked_data", "beit3.small_visual_tokenizer"):
        run = recipe(name)
        assert run.embedders.image == "own" and run.images.square
        assert run.images.shorter_side == run.model.patch_size * run.model.grid[0], name
