"""Recipes by name, and their settings by dotted names. Torch-free, so that help answers at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from inspect import isfunction, signature
from pkgutil import iter_modules
from typing import Any, TypeVar

import diptych.models
from diptych.config.choices import ABSENT, Words, choose, walk
from diptych.config.run import Finetune, Pretrain
from diptych.config.spelling import suggest_name, suggest_setting
from diptych.config.tasks import FINETUNED
from diptych.inference.saved_model import RunError
from diptych.models import common_recipes

T = TypeVar("T")
_SIZED_NAME = re.compile(r"([a-z0-9]+)_(\w+)_patch(\d{1,4})_(\d{1,4})")


def recipe(name: str, kind: str = "Pretrain") -> Any:
    """The run that the recipe ``SYSTEM.FUNCTION`` returns. Raises RunError, which suggests the nearest names."""
    known = recipes(kind)
    if name not in known:
        suggestion = suggest_name(name, known, 3)
        listing = f"diptych {kind.lower()} --help lists all {len(known)}"
        raise RunError(f"there is no recipe {name!r}{suggestion} ({listing})")
    system, function = name.split(".")
    return getattr(import_module(recipe_modules()[system]), function)()


def recipes(kind: str = "Pretrain") -> list[str]:
    """The names of all recipes of a kind: public functions that return it and have no required parameter."""
    return [
        f"{system}.{name}"
        for system, module in recipe_modules().items()
        for name, value in vars(import_module(module)).items()
        if isfunction(value)
        and not name.startswith("_")
        and value.__module__ == module
        and signature(value).return_annotation == kind
        and not any(p.default is p.empty for p in signature(value).parameters.values())
    ]


@cache
def recipe_modules() -> dict[str, str]:
    """The module with the recipes of each system, and of the demo, by system."""
    systems = [module.name for module in iter_modules(diptych.models.__path__) if module.ispkg]
    modules = {system: f"diptych.models.{system}.recipes" for system in systems}
    existing = {system: module for system, module in modules.items() if find_spec(module)}
    return dict(sorted((existing | {"demo": "diptych.runs.demo_recipes"}).items()))


def list_models(pattern: str = "*") -> list[str]:
    """The names of all recipes, of pre-training and of fine-tuning, that match a pattern such as ``"clip.*"``."""
    names = [*recipes(), *recipes("Finetune")]
    return sorted(name for name in dict.fromkeys(names) if fnmatchcase(name, pattern))


def finetuning_recipe(name: str, untrained: str = "") -> Finetune:
    """A system's own fine-tuning recipe, or a task on the model of the recipe `untrained`.

    Raises RunError, which suggests the nearest names.
    """
    if name not in FINETUNED:
        return recipe(name, "Finetune")
    run = recipe(untrained or FINETUNED[name].untrained)
    return replace(common_recipes.finetuning(name, run), recipe=untrained)


def model_recipe(name: str) -> Pretrain | Finetune:
    """The run whose model has a name: a recipe, as ``vilt.base``, or with sizes as in timm, ``vilt_base_patch32_384``.

    The latter is the recipe with this patch size and a position grid for square images of this size.
    Raises RunError, which suggests the nearest names, and ValueError for sizes that do not fit.
    """
    if (sized := _SIZED_NAME.fullmatch(name)) is None:
        known = list_models()
        if name not in known:
            suggestion = suggest_name(name.replace("_", ".", 1), known, 3)
            raise RunError(f"there is no model {name!r}{suggestion} (diptych.list_models() lists all {len(known)})")
        return recipe(name, "Pretrain" if name in recipes() else "Finetune")
    run = model_recipe(f"{sized[1]}.{sized[2]}")
    patch_size, side = int(sized[3]), int(sized[4])
    if not hasattr(run.model, "patch_size") or not hasattr(run.model, "grid"):
        raise RunError(
            f"{name}: the model of {sized[1]}.{sized[2]} has no patches; leave out _patch{patch_size}_{side}"
        )
    if not patch_size or side % patch_size:
        raise ValueError(f"{name}: the image size, {side}, must be a multiple of the patch size, {patch_size}")
    sizes: dict[str, Any] = {"patch_size": patch_size, "grid": (side // patch_size,) * 2}
    return replace(run, model=replace(run.model, **sizes))


def with_settings(config: T, values: Mapping[str, Any]) -> T:
    """A config with fields replaced, by their dotted names (``optimizer.learning_rate``; see `unprefixed`).

    An absent dataclass is added by the name of a field within it (``objectives.mlm.rate``), or chosen and removed as on
    the command line (``{"objectives.itc": "none"}``, or None; see config/choices.py).

    Raises ValueError for a name that does not exist, with the nearest, for a value of another type or range, and for a
    setting within a dataclass that is given whole.
    """
    names, tree, words = setting_names(config), dict[str, Any](), list[str]()
    values = dict(_flat(values))
    for name in values:
        if name not in names:
            raise ValueError(f"there is no setting {name!r}{suggest_setting(name, list(names))}")
    whole = {names[name][0]: name for name, value in values.items() if is_dataclass(value)}
    for name, value in values.items():
        path, choice = names[name]
        if owner := next((whole[other] for other in whole if path.startswith(f"{other}.")), None):
            raise ValueError(f"{name} is a setting of {owner}, which is given whole: set it there, or leave out one")
        if choice and (value is None or isinstance(value, str)):
            words += [f"--{path}", ABSENT if value is None else value]
            continue
        # adds the absent dataclasses that the value is within
        members = {member: word for word, member in (choice or {}).items()}
        words += [f"--{path}", *([members.get(type(value), [*members.values()][-1])] if choice else [])]
        *groups, last = path.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[last] = tuple(value) if isinstance(value, list) else value
    return counted_by_steps(_replaced(choose(config, words)[0], tree), {names[name][0] for name in values})


def counted_by_steps(config: T, given: Collection[str]) -> T:
    """A run whose `training.steps` are among the paths of the `given` settings, without the epochs of its recipe.

    Other configs, and runs whose epochs are given too, stay as they are.
    """
    if "training.steps" not in given or "training.epochs" in given:
        return config
    return _replaced(config, {"training": {"epochs": 0.0}})


def setting_names(config: Any) -> dict[str, tuple[str, Words | None]]:
    """The path of every setting by its dotted name, groups of settings among them, and the words of a choice."""
    names: dict[str, tuple[str, Words | None]] = {}
    for flag, words in walk(config):
        path = flag.removeprefix("--")
        parts = path.split(".")
        for i in range(1, len(parts) + 1):
            whole = ".".join(parts[:i])
            names.setdefault(without_prefix(whole, config), (whole, None))
        if words:
            names[path] = (path, words)
    return names


def unprefixed(config: Any) -> dict[str, str]:
    """The settings that are named without the prefix of their group: those of a run's `training` and `options`.

    Returns: the group of each.
    """
    groups = [field.name for field in fields(config) if field.name in ("training", "options")]
    return {field.name: group for group in groups for field in fields(getattr(config, group))}


def without_prefix(path: str, config: Any) -> str:
    """A setting's dotted name as it is typed."""
    group, _, name = path.partition(".")
    return name if name and unprefixed(config).get(name.split(".")[0]) == group else path


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names; a mapping contains those of a group."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _replaced(config: Any, tree: Mapping[str, Any]) -> Any:
    """The config with the fields of a tree of names replaced, all at once, as they are checked together."""
    values = {
        name: _replaced(getattr(config, name), value) if isinstance(value, dict) else value
        for name, value in tree.items()
    }
    return replace(config, **values)
