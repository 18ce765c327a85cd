"""A config that is accepted can be built: what `build` would refuse, the config refuses when it is made."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from diptych.config.validation import MaxItems, Range
from diptych.models.clip.config import CLIPResNetConfig
from diptych.models.configs import CrossViTConfig, Model, ViLBERTConfig
from diptych.models.crossvit.config import STEM_PATCH_SIZES
from diptych.modules.embeddings import STRIDES

CONFIGS = {kind.__name__: kind for kind in (*get_args(Model), CLIPResNetConfig)}
SMALL = (0, 1, 2, 3, 4, 6, 8, 12, 16)
DEPTHS = (0, 1, 2, 3)


def drawn(hint: Any, draw: random.Random) -> Any:
    """A random value of a field's type, small enough to build, mostly within its range."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        (bound,) = [rule for rule in inner[1:] if isinstance(rule, Range | MaxItems)] or [None]
        if isinstance(bound, Range) and inner[0] is int:
            depth = bound.high <= 512 and bound.low < 2  # or a number of patches
            return draw.choice([n for n in (DEPTHS if depth else SMALL) if n in bound])
        return drawn(inner[0], draw)
    if origin is Literal:
        return drawn(inner[-1], draw) if get_origin(inner[-1]) is Literal else draw.choice(inner)
    if origin is tuple:
        kinds = inner[:1] * draw.randrange(4) if inner[1:] == (...,) else inner
        return tuple(drawn(kind, draw) for kind in kinds)
    return {int: draw.choice(SMALL), bool: draw.random() < 0.5, float: draw.choice((0.0, 0.1, 0.5, 1.0))}[hint]


def accepted(kind: Any, draw: random.Random) -> Any:
    """A random config, or None where its values contradict each other."""
    hints = get_type_hints(kind, include_extras=True)
    values = {field.name: drawn(hints[field.name], draw) for field in fields(kind)}
    try:
        return kind(**values)
    except ValueError:
        return None


@pytest.mark.quick("ViLBERTConfig", "CLIPResNetConfig", "CrossViTConfig")
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.slow
def test_every_config_that_is_accepted_can_be_built(name: str):
    draw, built = random.Random(name), 0
    for _ in range(2000):
        if (config := accepted(CONFIGS[name], draw)) is None:
            continue
        with torch.device("meta"):
            try:
                config.build()
            except Exception as error:
                raise AssertionError(f"{config} is accepted, but cannot be built") from error
        built += 1
        if built == 25:
            return
    assert built > 10, f"only {built} of 2,000 random configs are accepted: too few to test"


def test_stems_are_known_for_the_patch_sizes_of_the_config():
    assert set(STEM_PATCH_SIZES) == set(STRIDES)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (ViLBERTConfig, {"schedule": ((2, 1), (1, 2))}, r"model\.schedule must not decrease: got \(\(2, 1\), \(1, 2\)\)"),
        (ViLBERTConfig, {"schedule": ((2, 2), (3, 1))}, r"model\.schedule must not decrease"),
        (CLIPResNetConfig, {"num_heads": 7}, r"model\.num_heads must divide .* 2048: got 7"),
        (CLIPResNetConfig, {"depths": ()}, r"model\.depths must have at least one"),
        (CrossViTConfig, {"stem": True, "patch_sizes": (12, 14), "image_sizes": (240, 224)}, r"patch_sizes"),
        (CrossViTConfig, {"stem": True, "dims": (6, 8), "num_heads": (1, 1)}, r"dims"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_with_the_field(kind: Any, values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        kind(**values)
