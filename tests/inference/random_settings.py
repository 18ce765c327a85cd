"""Random valid settings of any dataclass of settings, drawn from the types and ranges of its fields."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from diptych.config.validation import MaxItems, Range

T = TypeVar("T")
TEXTS = ("a", "vilt.base", "café", "北京", "🎉 e\u0301", 'a "quoted" \\ back', "tab\tand\nline", "\u2028", "{}", " ")


def random_settings(cls: type[T], draw: random.Random) -> T:
    """An instance whose fields are random, as far as a field fits the others; those that do not keep their defaults."""
    hints = get_type_hints(cls, include_extras=True)
    required = [field for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING]  # type: ignore[arg-type]
    made = cls(**{field.name: random_value(hints[field.name], draw) for field in required})
    for field in fields(cls):  # type: ignore[arg-type]
        with suppress(ValueError):  # it does not fit another field
            made = replace(made, **{field.name: random_value(hints[field.name], draw)})  # type: ignore[type-var]
    return made


def random_value(hint: Any, draw: random.Random) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _in_range(inner[0], inner[1:], draw)
    if origin in (Union, UnionType):
        return random_value(draw.choice(inner), draw)
    if origin is Literal:
        return draw.choice(inner)
    if origin is tuple:
        kinds = inner[:1] * draw.randrange(4) if inner[1:] == (...,) else inner
        return tuple(random_value(kind, draw) for kind in kinds)
    if origin is dict:
        return {draw.choice(TEXTS): random_value(inner[1], draw) for _ in range(draw.randrange(3))}
    if is_dataclass(hint):
        return random_settings(hint, draw)  # type: ignore[arg-type]
    simple = {bool: draw.random() < 0.5, str: draw.choice(TEXTS), int: draw.randrange(9), float: draw.random()}
    return None if hint is NoneType else simple[hint]


def _in_range(kind: Any, rules: tuple[Any, ...], draw: random.Random) -> Any:
    """A value that keeps the rules of an annotated type."""
    for rule in rules:
        if isinstance(rule, Range):
            low, high = rule.low, min(rule.high, rule.low + 1000)
            return (
                draw.randint(int(low) + 1, int(high))
                if kind is int
                else low + (high - low) * (0.1 + 0.8 * draw.random())
            )
        if isinstance(rule, MaxItems):
            return random_value(kind, draw)[: rule.most]
    return random_value(kind, draw)
