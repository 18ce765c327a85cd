"""How a key of a Hugging Face JSON file is treated: read, fixed, or ignored for a stated reason; any other key is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diptych.checkpoints.read import WeightsError

Take = Callable[[Any], Any]
"""From a JSON value to a setting. Raises ValueError with what was expected."""


@dataclass(frozen=True)
class Read:
    """A key that sets `argument` of the model. `default`: what the class takes where the key is absent. `in_shapes`: the
    weights' shapes give the same number, and must agree.
    """

    argument: str
    default: Any
    take: Take
    in_shapes: bool = False


@dataclass(frozen=True)
class Fixed:
    """A key whose value must be one of `values` (the class's default first): the model here computes nothing else."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Ignored:
    """A key that changes no output of the model, and why."""

    why: str


@dataclass(frozen=True)
class Reported:
    """A key that changes training but no output: a value other than `values` is printed with `note`."""

    values: tuple[Any, ...]
    note: str


Rule = Read | Fixed | Ignored | Reported
Table = Mapping[str, Rule]


def apply(table: Table, values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Settings by argument, and the notes to print. `where`: the file and, if nested, the part of it ("config.json: ").

    Raises WeightsError naming file, key, value and what was expected, also for a key that has no rule.
    """
    unknown = [key for key in values if key not in table]
    printable = [key if key.isprintable() else repr(key) for key in unknown]
    if unknown:
        shown = f"{printable[0]} = {_short(values[unknown[0]])}"
        more = f" (and {', '.join(printable[1:4])})" if unknown[1:] else ""
        raise WeightsError(f"{where}{shown} is a key without a rule here{more}; remove it if the model ignores it")
    settings: dict[str, Any] = {}
    notes: list[str] = []
    for key, rule in table.items():
        if isinstance(rule, Read):
            settings[rule.argument] = _taken(rule, key, values.get(key, rule.default), where)
        elif isinstance(rule, Fixed) and key in values and not _among(values[key], rule.values):
            expected = " or ".join(map(repr, rule.values))
            raise WeightsError(f"{where}{key} is {_short(values[key])}; expected {expected}: nothing else is supported")
        elif isinstance(rule, Reported) and key in values and not _among(values[key], rule.values):
            notes.append(f"{where}{key} = {_short(values[key])}: {rule.note}")
    return settings, notes


def check_shapes(table: Table, settings: Mapping[str, Any], arguments: Mapping[str, Any], where: str) -> None:
    """Raises WeightsError where a key gives another size than the weights' shapes do."""
    for key, rule in table.items():
        if not isinstance(rule, Read) or not rule.in_shapes or rule.argument not in arguments:
            continue
        stated, held = settings[rule.argument], arguments[rule.argument]
        if stated != held:
            raise WeightsError(f"{where}{key} makes {rule.argument} {stated}, but in the weights it is {held}")


def _taken(rule: Read, key: str, value: Any, where: str) -> Any:
    try:
        return rule.take(value)
    except ValueError as error:
        raise WeightsError(f"{where}{key} is {_short(value)}; expected {error}") from None


def _among(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether a JSON value is one of some: true is not 1."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


def _short(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 80 else f"{told[:77]}..."


def whole(value: Any) -> int:
    """A size: an integer in [1, 2**24)."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**24:
        raise ValueError("an integer of at least 1")
    return value


def real(value: Any) -> float:
    """A finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError("a number")
    return float(value)


def eps(value: Any) -> float:
    """The eps of a LayerNorm."""
    if not 0 <= real(value) < 1:
        raise ValueError("a number in [0, 1)")
    return float(value)


rate = eps
"""A dropout rate has the same range."""


def pair(value: Any) -> tuple[int, int]:
    """Height and width: two integers, or one for both."""
    if isinstance(value, list) and len(value) == 2:
        return whole(value[0]), whole(value[1])
    return whole(value), whole(value)


def patch(value: Any) -> int:
    """The side of a square patch."""
    rows, columns = pair(value)
    if rows != columns:
        raise ValueError("square patches, one integer")
    return rows


ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu", "swish": "silu",
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_python_tanh": "gelu_tanh",
}  # fmt: skip
"""transformers' names of activations, and ours (layers.feedforward)."""


def activation(value: Any) -> str:
    """Our name of an activation."""
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise ValueError(f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[value]


def hf_activation(name: str) -> str:
    """transformers' name of one of ours."""
    return {"gelu_tanh": "gelu_pytorch_tanh"}.get(name, name)
