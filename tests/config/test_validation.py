"""Settings are checked by the rules of their fields, with one-line errors that name the field."""

from __future__ import annotations

import math
import random
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from diptych.cli.baselines import Baselines
from diptych.cli.benchmark import Benchmark
from diptych.config import objectives
from diptych.config.capfilt import CapFilt, CorruptCaptions
from diptych.config.data import Embedders, ImageSettings, Streaming
from diptych.config.run import Finetune, Pretrain, Teacher
from diptych.config.tasks import EVALUATIONS
from diptych.config.training import Optimizer, Training
from diptych.config.validation import MaxItems, Range, Text, check, require_at_most, require_multiple, settings
from diptych.inference.saved_model import RunError
from diptych.models.configs import (
    ALBEFConfig,
    BLIPConfig,
    CLIPConfig,
    CrossViTConfig,
    MAEConfig,
    Model,
    ViLBERTConfig,
    ViLTConfig,
    VLMoConfig,
)
from diptych.runs import build as building
from diptych.runs import finetune
from diptych.runs.recipes import recipe, recipes
from diptych.tasks.definition import Labels

ALL_SETTINGS = (
    *get_args(Model),
    *(Pretrain, Finetune, Teacher, Embedders),
    *EVALUATIONS.values(),
    *(value for value in vars(objectives).values() if getattr(value, "__module__", "") == objectives.__name__),
    *(ImageSettings, Streaming, Training, Optimizer, CapFilt, CorruptCaptions, Benchmark, Baselines),
)
INVALID: dict[type, tuple[Any, ...]] = {
    int: (0, -1, 1, 3, 2**31, 2**70),
    float: (0.0, -1.0, 0.5, math.nan, math.inf, -math.inf, 1e308),
    str: ("", "8", "\0"),
    bool: (True, False),
    type(None): (0, "none"),
}
"""Values of each type that a user may enter by mistake."""
RECIPE_OF_MODEL = {type(recipe(name).model): name for name in recipes() if "." in name}
"""One recipe per model config class."""


@settings("part")
class Part:
    size: Annotated[int, Range(1, 8)] = 2
    share: Annotated[float, Range(0, 1, "low")] = 0.5
    form: Literal["a", "b"] = "a"
    pair: tuple[Annotated[int, Range(0, 9)], str] = (1, "x")
    many: Annotated[tuple[int, ...], MaxItems(2)] = ()
    name: Text = "n"
    flag: bool = False


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("size", 0, "part.size must be in [1, 8]: got 0"),
        ("size", 2**70, f"part.size must be in [1, 8]: got {2**70}"),
        ("size", True, "part.size must be an integer: got True"),
        ("size", 2.0, "part.size must be an integer: got 2.0"),
        ("size", "2", "part.size must be an integer: got '2'"),
        ("share", 0, "part.share must be in (0, 1]: got 0"),
        ("share", 2, "part.share must be in (0, 1]: got 2"),
        ("share", math.nan, "part.share must be in (0, 1]: got nan"),
        ("share", math.inf, "part.share must be in (0, 1]: got inf"),
        ("form", "c", "part.form must be one of 'a', 'b': got 'c'"),
        ("pair", [1, "x"], "part.pair must be a tuple: got [1, 'x']"),
        ("pair", (1,), "part.pair must be 2 values: got (1,)"),
        ("pair", (10, "x"), "part.pair must be in [0, 9]: got 10"),
        ("many", (1, 2, 3), "part.many must have at most 2 values: got 3"),
        ("name", "", "part.name must not be empty"),
        ("name", "a\0", "part.name must be text without a zero byte: got 'a\\x00'"),
        ("flag", 1, "part.flag must be True or False: got 1"),
        ("name", "x" * 99 + "\0", "part.name must be text without a zero byte: got '" + "x" * 59 + "..."),
    ],
)
def test_a_value_outside_its_fields_rule_is_rejected(field: str, value: Any, message: str):
    with pytest.raises(ValueError) as error:
        replace(Part(), **{field: value})
    assert str(error.value) == message


def test_a_range_contains_its_ends_unless_they_are_open():
    assert 0 in Range(0, 1) and 1 in Range(0, 1) and 0 not in Range(0, 1, "low") and 1 not in Range(0, 1, "high")
    assert 0 not in Range(0, 1, "both") and 0.5 in Range(0, 1, "both") and math.nan not in Range(-math.inf, math.inf)
    assert replace(Part(), size=8, share=1, pair=(9, "")).share == 1


def test_fields_can_be_checked_against_each_other():
    part = Part(size=6, pair=(4, "x"))
    object.__setattr__(part, "other", 4)
    with pytest.raises(ValueError, match=r"part\.size must be a multiple of part\.other, 4: got 6"):
        require_multiple(part, "part", ("size", "other"))
    with pytest.raises(ValueError, match=r"part\.size must be at most part\.other, 4: got 6"):
        require_at_most(part, "part", ("size", "other"))
    object.__setattr__(part, "other", 6)
    require_multiple(part, "part", ("size", "other"))
    require_at_most(part, "part", ("size", "other"))
    with pytest.raises(ValueError, match=r"part\.size must be below part\.other, 6: got 6"):
        require_at_most(part, "part", ("size", "other"), below=True)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (ViLTConfig, {"dim": 100}, "model.dim must be a multiple of model.num_heads, 12: got 100"),
        (CLIPConfig, {"text_dim": 100}, "model.text_dim must be a multiple of model.text_num_heads, 8: got 100"),
        (VLMoConfig, {"vl_start_layer": 13}, "model.vl_start_layer must be at most model.depth, 12: got 13"),
        (BLIPConfig, {"bos_token_id": 30524}, "model.bos_token_id must be below model.vocab_size, 30524: got 30524"),
        (ViLBERTConfig, {"schedule": ((13, 0),)}, "model.schedule must stay within"),
        (CrossViTConfig, {"image_sizes": (241, 224)}, "model.image_sizes must be a multiple of model.patch_sizes"),
        (MAEConfig, {"dim": 6, "num_heads": 2}, "model.dim must be a multiple of 4: got 6"),
        (ALBEFConfig, {"num_images": 0}, "model.num_images must be in"),
        (Teacher, {"queue_size": 8}, "teacher.queue_size must be 0 if teacher.momentum is 0"),
        (ImageSettings, {"std": (0.5, 0.0, 0.5)}, r"images.std must be in \(0, 100\]: got 0.0"),
    ],
)
def test_values_that_contradict_each_other_are_rejected(kind: type, values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        kind(**values)


def leaves(hint: Any) -> list[tuple[Any, list[Any]]]:
    """The plain types within a type annotation, each with its rules."""
    if get_origin(hint) is Annotated:
        inner, *rules = get_args(hint)
        return [(kind, rules + own) for kind, own in leaves(inner)]
    if get_origin(hint) is tuple:
        return [leaf for part in get_args(hint) if part is not ... for leaf in leaves(part)]
    return [(hint, [])]


@pytest.mark.parametrize("kind", ALL_SETTINGS, ids=lambda kind: kind.__name__)
def test_every_numeric_field_has_a_range_that_is_checked(kind: type):
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        for plain, rules in leaves(hints[field.name]):
            if plain in (int, float):
                assert any(isinstance(rule, Range) for rule in rules), f"{kind.__name__}.{field.name} has no range"
        if field.default is not MISSING and not is_dataclass(field.default):
            check(hints[field.name], field.default, field.name)
    plain = {f.name: leaves(hints[f.name])[0][0] for f in fields(kind) if not isinstance(f.default, tuple)}
    odd = {name: {int: 2**70, float: math.nan}[of] for name, of in plain.items() if of in (int, float)}
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    for name in odd if not needed else ():
        with pytest.raises(ValueError, match=rf"{name} must be in .*: got "):
            kind(**{name: odd[name]})


def paths(run: Any) -> list[tuple[str, ...]]:
    """The attribute path of each value of a run."""
    result: list[tuple[str, ...]] = []
    for field in fields(run):
        value = getattr(run, field.name)
        result += [(field.name, *path) for path in paths(value)] if is_dataclass(value) else [(field.name,)]
    return result


def replaced(run: Any, path: tuple[str, ...], value: Any) -> Any:
    name, *rest = path
    return replace(run, **{name: replaced(getattr(run, name), tuple(rest), value) if rest else value})


def names_field(path: tuple[str, ...], message: str) -> bool:
    """Whether an error names the field that was changed, or a field that is checked against it."""
    return path[-1] in message or any(
        word in message for word in ("must be a multiple of", "must be at most", "must be below")
    )


@pytest.mark.quick("vilt*")
@pytest.mark.parametrize("name", [*RECIPE_OF_MODEL.values(), "vilt.vqa", "vilt.retrieval", "crossvit.small"])
def test_an_invalid_value_gives_a_one_line_error_or_the_run_can_be_built(name: str):
    kind = "Pretrain" if name in recipes() else "Finetune"
    run, rng, errors = recipe(name, kind), random.Random(name), 0
    for path in paths(run):
        value = invalid_like(attribute(run, path), rng)
        try:
            changed = replaced(run, path, value)
        except (TypeCheckError, BeartypeCallHintViolation):
            continue  # a Literal: in tests jaxtyping and beartype check types before our own check does
        except ValueError as error:
            assert names_field(path, str(error)) and "\n" not in str(error) and len(str(error)) < 400
            errors += 1
            continue
        if path[0] not in ("model", "heads") or rng.random() < 0.5:  # other fields do not shape the model
            continue
        try:
            with torch.device("meta"):
                if kind == "Pretrain":
                    building.build(changed, guided=False)
                else:
                    finetune.build(changed, Labels(("yes", "no")))
        except (ValueError, RunError) as error:
            assert "\n" not in str(error)
    assert errors > 10


def invalid_like(value: Any, rng: random.Random) -> Any:
    """A likely invalid value of the same type; for a tuple, with one such item."""
    if not isinstance(value, tuple):
        return rng.choice(INVALID[type(value)])
    if not value:
        return value
    index = rng.randrange(len(value))
    return (*value[:index], invalid_like(value[index], rng), *value[index + 1 :])


def attribute(run: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        run = getattr(run, name)
    return run
