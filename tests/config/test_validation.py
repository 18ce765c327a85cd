"""Settings are refused by their fields' own rules, in one line that names the field, however they are made."""

from __future__ import annotations

import math
import random
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from diptych.cli.arguments import recipe, recipes
from diptych.cli.baselines import Baselines
from diptych.cli.benchmark import Benchmark
from diptych.config.capfilt import CapFilt, CorruptCaptions
from diptych.config.data import ImageSettings, Streaming
from diptych.config.run import Embedders, Evaluation, Finetune, Objectives, Pretrain, Teacher
from diptych.config.training import Optimizer, Training
from diptych.config.validation import Longest, Range, Text, check, require_at_most, require_multiple, settings
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
from diptych.runs.run_folder import RunError

EVERY = (
    *get_args(Model), Pretrain, Finetune, Evaluation, Objectives, Teacher, Embedders, ImageSettings, Streaming, Training,
    Optimizer, CapFilt, CorruptCaptions, Benchmark, Baselines,
)  # fmt: skip
ODD: dict[type, tuple[Any, ...]] = {
    int: (0, -1, 1, 3, 2**31, 2**70),
    float: (0.0, -1.0, 0.5, math.nan, math.inf, -math.inf, 1e308),
    str: ("", "8", "\0"),
    bool: (True, False),
}
"""Values of each type that a person may type by mistake."""
ONE_OF_EACH = {type(recipe(name).model): name for name in recipes() if "." in name}
"""A recipe for each kind of model."""


@settings("part")
class Part:
    size: Annotated[int, Range(1, 8)] = 2
    share: Annotated[float, Range(0, 1, "low")] = 0.5
    form: Literal["a", "b"] = "a"
    pair: tuple[Annotated[int, Range(0, 9)], str] = (1, "x")
    many: Annotated[tuple[int, ...], Longest(2)] = ()
    name: Text = "n"
    flag: bool = False


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("size", 0, "part.size must be in [1, 8]: got 0"),
        ("size", 2**70, f"part.size must be in [1, 8]: got {2**70}"),
        ("size", True, "part.size must be a whole number: got True"),
        ("size", 2.0, "part.size must be a whole number: got 2.0"),
        ("size", "2", "part.size must be a whole number: got '2'"),
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
def test_a_value_that_breaks_its_fields_rule_is_refused(field: str, value: Any, told: str):
    with pytest.raises(ValueError) as refused:
        replace(Part(), **{field: value})
    assert str(refused.value) == told


def test_the_ends_of_ranges_belong_to_them_unless_they_are_open():
    assert 0 in Range(0, 1) and 1 in Range(0, 1) and 0 not in Range(0, 1, "low") and 1 not in Range(0, 1, "high")
    assert 0 not in Range(0, 1, "both") and 0.5 in Range(0, 1, "both") and math.nan not in Range(-math.inf, math.inf)
    assert replace(Part(), size=8, share=1, pair=(9, "")).share == 1


def test_fields_that_bound_one_another():
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
    ("kind", "values", "told"),
    [
        (ViLTConfig, {"dim": 100}, "model.dim must be a multiple of model.num_heads, 12: got 100"),
        (CLIPConfig, {"text_dim": 100}, "model.text_dim must be a multiple of model.text_num_heads, 8: got 100"),
        (VLMoConfig, {"vl_start_layer": 13}, "model.vl_start_layer must be at most model.depth, 12: got 13"),
        (BLIPConfig, {"bos_token_id": 30524}, "model.bos_token_id must be below model.vocab_size, 30524: got 30524"),
        (ViLBERTConfig, {"schedule": ((13, 0),)}, "model.schedule must stay within"),
        (CrossViTConfig, {"image_sizes": (241, 224)}, "model.image_sizes must be a multiple of model.patch_sizes"),
        (MAEConfig, {"dim": 6, "num_heads": 2}, "model.dim must be a multiple of 4: got 6"),
        (ALBEFConfig, {"num_images": 0}, "model.num_images must be in"),
        (Teacher, {"queue_size": 8}, "teacher.queue_size is 8, but there is no teacher"),
        (ImageSettings, {"std": (0.5, 0.0, 0.5)}, r"images.std must be in \(0, 100\]: got 0.0"),
    ],
)
def test_what_makes_no_sense_together_is_refused(kind: type, values: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=told):
        kind(**values)


def leaves(hint: Any) -> list[tuple[Any, list[Any]]]:
    """The plain types within a type, each with its rules."""
    if get_origin(hint) is Annotated:
        inner, *rules = get_args(hint)
        return [(kind, rules + own) for kind, own in leaves(inner)]
    if get_origin(hint) is tuple:
        return [leaf for part in get_args(hint) if part is not ... for leaf in leaves(part)]
    return [(hint, [])]


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_number_has_a_range_and_is_checked(kind: type):
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


def within(run: Any) -> list[tuple[str, ...]]:
    """Where each value of a run stands."""
    found: list[tuple[str, ...]] = []
    for field in fields(run):
        value = getattr(run, field.name)
        found += [(field.name, *path) for path in within(value)] if is_dataclass(value) else [(field.name,)]
    return found


def changed(run: Any, path: tuple[str, ...], value: Any) -> Any:
    name, *rest = path
    return replace(run, **{name: changed(getattr(run, name), tuple(rest), value) if rest else value})


def names(path: tuple[str, ...], message: str) -> bool:
    """Whether a refusal names the field that was changed, or one that it bounds."""
    return path[-1] in message or any(
        word in message for word in ("must be a multiple of", "must be at most", "must be below")
    )


@pytest.mark.quick("vilt*")
@pytest.mark.parametrize("name", [*ONE_OF_EACH.values(), "vilt.vqa", "vilt.retrieval", "crossvit.small"])
def test_an_odd_value_is_refused_in_one_line_or_the_run_is_built(name: str):
    kind = "Pretrain" if name in recipes() else "Finetune"
    run, draw, refusals = recipe(name, kind), random.Random(name), 0
    for path in within(run):
        value = odd_like(attribute(run, path), draw)
        try:
            odd = changed(run, path, value)
        except (
            TypeCheckError,
            BeartypeCallHintViolation,
        ):  # of a choice: in tests every type is checked before ours is
            continue
        except ValueError as refused:
            assert names(path, str(refused)) and "\n" not in str(refused) and len(str(refused)) < 400
            refusals += 1
            continue
        if path[0] not in ("model", "heads") or draw.random() < 0.5:  # the rest is no part of the module
            continue
        try:
            with torch.device("meta"):
                if kind == "Pretrain":
                    building.build(odd, guided=False)
                else:
                    finetune.build(odd, {"answers": ["yes", "no"], "classes": ["cat"]})
        except (ValueError, RunError) as refused:
            assert "\n" not in str(refused)
    assert refusals > 10


def odd_like(value: Any, draw: random.Random) -> Any:
    """An odd value of the same type; of a tuple, one with an odd value in one place."""
    if not isinstance(value, tuple):
        return draw.choice(ODD[type(value)])
    if not value:
        return value
    place = draw.randrange(len(value))
    return (*value[:place], odd_like(value[place], draw), *value[place + 1 :])


def attribute(run: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        run = getattr(run, name)
    return run
