"""Settings with rules: frozen dataclasses whose every field has a type and, where it is a number, a range.

A rule stands once, at the field (``rate: Annotated[float, Range(0, 1)]``, or one of the names below), and is checked whenever
a value is made: from the command line, a recipe, a run.json or Python. Plain Python: recipes read this file without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

T = TypeVar("T")
SHOWN = 60
"""Characters of a refused value that a message repeats."""


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; an end that is `open` does not belong to it. NaN is in no range."""

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
    """A text that may not be empty."""


@dataclass(frozen=True)
class Longest:
    """A tuple of at most so many values."""

    most: int


Text = Annotated[str, Nonempty()]

Seed = Annotated[int, Range(0, 2**63 - 1)]
Count = Annotated[int, Range(1, 2**31 - 1)]
CountOrNone = Annotated[int, Range(0, 2**31 - 1)]  # 0: none, or all
Samples = Annotated[int, Range(1, 2**20)]
Workers = Annotated[int, Range(0, 256)]

Dim = Annotated[int, Range(1, 2**16)]
MLPDim = Annotated[int, Range(1, 2**18)]
Depth = Annotated[int, Range(1, 512)]
DepthOrNone = Annotated[int, Range(0, 512)]
NumHeads = Annotated[int, Range(1, 1024)]
PatchSize = Annotated[int, Range(1, 512)]
Cells = Annotated[int, Range(1, 512)]  # patches along a side
Places = Annotated[int, Range(1, 64)]  # of boxes along a side of a picture
Pixels = Annotated[int, Range(1, 4096)]  # along a side
PixelsOrNone = Annotated[int, Range(0, 4096)]
VocabSize = Annotated[int, Range(1, 2**21)]
Place = Annotated[int, Range(0, 2**21)]  # of a piece in a vocabulary
Length = Annotated[int, Range(1, 2**16)]  # of a text, in pieces
NumClasses = Annotated[int, Range(1, 2**20)]
NumClassesOrNone = Annotated[int, Range(0, 2**20)]
NumImages = Annotated[int, Range(1, 8)]  # of a sample
NumBeams = Annotated[int, Range(1, 1024)]
MaxLength = Annotated[int, Range(2, 2**16)]  # pieces of a text that is generated, its first and its end among them

Activation = Literal["gelu", "quick_gelu", "gelu_tanh", "relu", "silu"]
Epsilon = Annotated[float, Range(0, 1, "both")]  # of layer normalisation

Share = Annotated[float, Range(0, 1)]
ShareAboveZero = Annotated[float, Range(0, 1, "low")]
ShareBelowOne = Annotated[float, Range(0, 1, "high")]
Weight = Annotated[float, Range(0, 1e6)]
Factor = Annotated[float, Range(0, 1e4, "low")]
Steps = Annotated[float, Range(0, 2**31 - 1)]  # of a run; below 1 a share of it


@dataclass_transform(frozen_default=True)
def settings(prefix: str = "") -> Callable[[type[T]], type[T]]:
    """A frozen dataclass that checks the types and ranges of its fields, then its own ``__post_init__``.

    Args:
        prefix: where it stands in a run ("model", "objectives"): messages name a field as the command line does.

    Raises (when a value is made): ValueError in one line that names the field, what it must be and what it is.
    """

    def decorate(cls: type[T]) -> type[T]:
        own = vars(cls).get("__post_init__")

        def __post_init__(self: Any) -> None:
            hints = _hints(cls)
            for field in fields(self):
                check(hints[field.name], getattr(self, field.name), _dotted(prefix, field.name))
            if own is not None:
                own(self)

        cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
        return dataclass(frozen=True)(cls)

    return decorate


def check(hint: Any, value: Any, name: str) -> None:
    """Raises ValueError unless `value` is of the type `hint`, within its ranges; a bool is no number, a list no tuple."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        check(inner[0], value, name)
        for rule in inner[1:]:
            if isinstance(rule, Range) and value not in rule:
                _refuse(name, f"in {rule}", value)
            if isinstance(rule, Nonempty) and not value:
                raise ValueError(f"{name} must not be empty")
            if isinstance(rule, Longest) and len(value) > rule.most:
                raise ValueError(f"{name} must have at most {rule.most} values: got {len(value)}")
    elif origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in inner):
            _refuse(name, f"one of {', '.join(map(repr, inner))}", value)
    elif origin is tuple:
        _check_tuple(inner, value, name)
    elif wanted := _kind(hint):
        what, kinds = wanted
        if not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool):
            _refuse(name, what, value)
        if isinstance(value, str) and "\0" in value:
            _refuse(name, "text without a zero byte", value)


def require_multiple(made: Any, prefix: str, *pairs: tuple[str, str]) -> None:
    """Raises ValueError unless the first field of each pair is a multiple of the second; of tuples, each number."""
    for field, divisor in pairs:
        value, by = getattr(made, field), getattr(made, divisor)
        parts = zip(value, by, strict=True) if isinstance(value, tuple) else [(value, by)]
        if any(one % other for one, other in parts):
            raise ValueError(
                f"{_dotted(prefix, field)} must be a multiple of {_dotted(prefix, divisor)}, {by}: got {value}"
            )


def require_at_most(made: Any, prefix: str, *pairs: tuple[str, str], below: bool = False) -> None:
    """Raises ValueError unless the first field of each pair is at most the second, or with `below` less than it."""
    for field, bound in pairs:
        value, most = getattr(made, field), getattr(made, bound)
        if value > most or (below and value == most):
            what = "below" if below else "at most"
            raise ValueError(f"{_dotted(prefix, field)} must be {what} {_dotted(prefix, bound)}, {most}: got {value}")


def _check_tuple(inner: tuple[Any, ...], value: Any, name: str) -> None:
    if not isinstance(value, tuple):
        _refuse(name, "a tuple", value)
    kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
    if len(kinds) != len(value):
        _refuse(name, f"{len(kinds)} values", value)
    for kind, part in zip(kinds, value, strict=True):
        check(kind, part, name)


def _kind(hint: Any) -> tuple[str, Any] | None:
    """What a value of the type is called, and the Python types that it may have."""
    plain = {
        int: ("a whole number", int),
        float: ("a number", (int, float)),
        bool: ("True or False", bool),
        str: ("text", str),
    }
    if hint in plain:
        return plain[hint]
    kinds = [kind for kind in (get_args(hint) or (hint,)) if isinstance(kind, type) and is_dataclass(kind)]
    return (" or ".join(kind.__name__ for kind in kinds), tuple(kinds)) if kinds else None


def _refuse(name: str, what: str, value: Any) -> None:
    shown = repr(value)
    raise ValueError(f"{name} must be {what}: got {shown if len(shown) <= SHOWN else shown[:SHOWN] + '...'}")


def _dotted(prefix: str, field: str) -> str:
    return f"{prefix}.{field}" if prefix else field


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)
