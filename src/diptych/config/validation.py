"""Frozen dataclasses of settings whose fields are checked against their types and ranges.

A rule is written once, at the field (``rate: Annotated[float, Range(0, 1)]``, or one of the type aliases below), and is
checked whenever an instance is made: from the command line, a recipe, a run.json or Python. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

T = TypeVar("T")
MAX_REPR_CHARS = 60
"""Maximum number of characters of a rejected value that an error message repeats."""


@dataclass(frozen=True)
class Range:
    """Interval from `low` to `high`; `open` names the ends that do not belong to it. NaN is in no range."""

    low: float
    high: float
    open: Literal["", "low", "high", "both"] = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open in ("low", "both") else value >= self.low
        return above and (value < self.high if self.open in ("high", "both") else value <= self.high)

    def __str__(self) -> str:
        left = "(" if self.open in ("low", "both") else "["
        return f"{left}{self.low}, {self.high}{')' if self.open in ('high', 'both') else ']'}"


@dataclass(frozen=True)
class Nonempty:
    """Marks a text that must not be empty."""


@dataclass(frozen=True)
class MaxItems:
    """Marks a tuple of at most `limit` items."""

    most: int


Text = Annotated[str, Nonempty()]

Seed = Annotated[int, Range(0, 2**63 - 1)]
Count = Annotated[int, Range(1, 2**31 - 1)]
CountOrZero = Annotated[int, Range(0, 2**31 - 1)]  # 0: none, or all (see the field)
Samples = Annotated[int, Range(1, 2**20)]
Workers = Annotated[int, Range(0, 256)]

Dim = Annotated[int, Range(1, 2**16)]
MLPDim = Annotated[int, Range(1, 2**18)]
Depth = Annotated[int, Range(1, 512)]
DepthOrZero = Annotated[int, Range(0, 512)]
NumHeads = Annotated[int, Range(1, 1024)]
PatchSize = Annotated[int, Range(1, 512)]
PatchesPerSide = Annotated[int, Range(1, 512)]  # patches along one side of an image
BoxesPerSide = Annotated[int, Range(1, 64)]  # positions of boxes along one side of an image
Pixels = Annotated[int, Range(1, 4096)]  # along one side of an image
PixelsOrZero = Annotated[int, Range(0, 4096)]
VocabSize = Annotated[int, Range(1, 2**21)]
TokenId = Annotated[int, Range(0, 2**21)]  # token id
Length = Annotated[int, Range(1, 2**16)]  # text length in tokens
NumClasses = Annotated[int, Range(1, 2**20)]
NumClassesOrZero = Annotated[int, Range(0, 2**20)]
NumImages = Annotated[int, Range(1, 8)]  # per sample
NumBeams = Annotated[int, Range(1, 1024)]
MaxLength = Annotated[int, Range(2, 2**16)]  # tokens of a generated text, start and end tokens included

Activation = Literal["gelu", "quick_gelu", "gelu_tanh", "relu", "silu"]
Epsilon = Annotated[float, Range(0, 1, "both")]  # of layer normalisation

Fraction = Annotated[float, Range(0, 1)]
PositiveFraction = Annotated[float, Range(0, 1, "low")]
FractionBelowOne = Annotated[float, Range(0, 1, "high")]
InnerFraction = Annotated[float, Range(0, 1, "both")]
Weight = Annotated[float, Range(0, 1e6, "low")]  # of a loss
Factor = Annotated[float, Range(0, 1e4, "low")]
Steps = Annotated[float, Range(0, 2**31 - 1)]  # optimizer steps; below 1: a share of the run
Epochs = Annotated[float, Range(0, 1e6)]  # passes over the training examples; 0: none (see the field)


@dataclass_transform(frozen_default=True)
def settings(prefix: str = "", kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """Class decorator: a frozen dataclass that checks its fields' types and ranges, then runs its ``__post_init__``.

    A subclass runs the ``__post_init__`` of its bases too, from the most general on.

    Args:
        prefix: path of the settings in a run ("model", "objectives"), so that messages name a field as the command line
            does.
        kw_only: fields are given by name only, so that a class with defaults can be extended by required ones.

    Raises:
        ValueError: when an instance is made; one line with the field, what it must be and what it is.
    """

    def decorate(cls: type[T]) -> type[T]:
        own = vars(cls).get("__post_init__")
        checks: list[Callable[[Any], None]] = [
            check for base in cls.__bases__ for check in getattr(base, "_checks", ())
        ]
        checks = list(dict.fromkeys([*checks, *([own] if own else [])]))

        def __post_init__(self: Any) -> None:
            hints = _hints(cls)
            for field in fields(self):
                check(hints[field.name], getattr(self, field.name), _dotted(prefix, field.name))
            for check_more in checks:
                check_more(self)

        cls.__post_init__, cls._checks = __post_init__, tuple(checks)  # type: ignore[attr-defined]
        return dataclass(frozen=True, kw_only=kw_only)(cls)

    return decorate


def check_fields(config_class: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raises ValueError unless each of `values` has the type and range of the settings' field of that name."""
    for name, value in values.items():
        check(_hints(config_class)[name], value, _dotted(prefix, name))


def check(hint: Any, value: Any, name: str) -> None:
    """Raises ValueError unless `value` has type `hint`, in its ranges. A bool is no number, a list no tuple."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        check(inner[0], value, name)
        for rule in inner[1:]:
            if isinstance(rule, Range) and value not in rule:
                _raise_invalid(name, f"in {rule}", value)
            if isinstance(rule, Nonempty) and not value:
                raise ValueError(f"{name} must not be empty")
            if isinstance(rule, MaxItems) and len(value) > rule.most:
                raise ValueError(f"{name} must have at most {rule.most} values: got {len(value)}")
    elif origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in inner):
            _raise_invalid(name, f"one of {', '.join(map(repr, inner))}", value)
    elif origin is tuple:
        _check_tuple(inner, value, name)
    elif origin is dict:
        if not isinstance(value, dict):
            _raise_invalid(name, "names and values", value)
        for key, part in value.items():
            check(inner[0], key, f"a name in {name}")
            check(inner[1], part, f"{name}.{key!s:.60}")
    elif expected := _expected_type(hint):
        description, types = expected
        if not isinstance(value, types) or (isinstance(value, bool) and hint is not bool):
            _raise_invalid(name, description, value)
        if isinstance(value, str) and "\0" in value:
            _raise_invalid(name, "text without a zero byte", value)


def require_multiple(config: Any, prefix: str, *pairs: tuple[str, str]) -> None:
    """Raises ValueError unless the first field of each pair is a multiple of the second; tuples item by item."""
    for field, divisor in pairs:
        value, by = getattr(config, field), getattr(config, divisor)
        items = zip(value, by, strict=True) if isinstance(value, tuple) else [(value, by)]
        if any(number % factor for number, factor in items):
            raise ValueError(
                f"{_dotted(prefix, field)} must be a multiple of {_dotted(prefix, divisor)}, {by}: got {value}"
            )


def require_at_most(config: Any, prefix: str, *pairs: tuple[str, str], below: bool = False) -> None:
    """Raises ValueError unless the first field of each pair is at most the second, or with `below` less than it."""
    for field, bound in pairs:
        value, limit = getattr(config, field), getattr(config, bound)
        if value > limit or (below and value == limit):
            relation = "below" if below else "at most"
            limit_name = _dotted(prefix, bound)
            raise ValueError(f"{_dotted(prefix, field)} must be {relation} {limit_name}, {limit}: got {value}")


def _check_tuple(inner: tuple[Any, ...], value: Any, name: str) -> None:
    if not isinstance(value, tuple):
        _raise_invalid(name, "a tuple", value)
    kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
    if len(kinds) != len(value):
        _raise_invalid(name, f"{len(kinds)} values", value)
    for kind, part in zip(kinds, value, strict=True):
        check(kind, part, name)


def _expected_type(hint: Any) -> tuple[str, tuple[type, ...]] | None:
    """Description of a type for messages, and the Python types that its values may have."""
    plain: dict[Any, tuple[str, tuple[type, ...]]] = {
        int: ("an integer", (int,)),
        float: ("a number", (int, float)),
        bool: ("True or False", (bool,)),
        str: ("text", (str,)),
    }
    if hint in plain:
        return plain[hint]
    kinds = (*dataclasses_of(hint), *([NoneType] if allows_none(hint) else []))
    return (" or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds), kinds) if kinds else None


def dataclasses_of(hint: Any) -> tuple[type, ...]:
    """The dataclasses that a value of type `hint` may be an instance of: those of a union, or the only one."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind))


def allows_none(hint: Any) -> bool:
    """Whether a dataclass that is a value of type `hint` may be None instead."""
    return bool(dataclasses_of(hint)) and NoneType in get_args(hint)


def shown(value: Any) -> str:
    """A value as the command line takes it: the items of tuples as words."""
    return " ".join(map(shown, value)) if isinstance(value, tuple) else str(value)


def preview(value: Any) -> str:
    """A value as messages repeat it: its representation, cut to MAX_REPR_CHARS."""
    text = repr(value)
    return text if len(text) <= MAX_REPR_CHARS else f"{text[:MAX_REPR_CHARS]}..."


def _raise_invalid(name: str, expected: str, value: Any) -> None:
    """Raises ValueError with the name of a setting, what it must be, and the start of its value."""
    raise ValueError(f"{name} must be {expected}: got {preview(value)}")


def _dotted(prefix: str, field: str) -> str:
    return f"{prefix}.{field}" if prefix else field


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)
