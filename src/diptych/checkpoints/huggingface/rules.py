"""Rules for the keys of a Hugging Face JSON file: read, fixed, or ignored with a reason; any other key is an error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diptych.checkpoints.read import WeightsError

Converter = Callable[[Any], Any]
"""Converts a JSON value to a setting. Raises ValueError with a description of what was expected."""


@dataclass(frozen=True)
class Read:
    """A key that sets the constructor argument `argument` of the model.

    `default`: the default of the transformers class. `in_shapes`: the argument follows from the shapes of the weights
    too, and must agree with them.
    """

    argument: str
    default: Any
    convert: Converter
    in_shapes: bool = False


@dataclass(frozen=True)
class Fixed:
    """A key whose value must be one of `values` (the class's default first), the only ones that the model supports."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Ignored:
    """A key that changes no output of the model, and the reason."""

    why: str


@dataclass(frozen=True)
class Reported:
    """A key that changes training but no output: a value other than `values` is printed with `note`."""

    values: tuple[Any, ...]
    note: str


Rule = Read | Fixed | Ignored | Reported
Table = Mapping[str, Rule]


def apply(table: Table, values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Applies a table of rules to the keys and values of a file.

    Args:
        where: the file and the nested part, for messages ("config.json: text_config.").

    Returns:
        Settings by argument, and notes to print.

    Raises:
        WeightsError: a value is not supported, or a key has no rule; the message names file, key and value.
    """
    unknown = [key for key in values if key not in table]
    printable = [key if key.isprintable() else repr(key) for key in unknown]
    if unknown:
        first = f"{printable[0]} = {_short(values[unknown[0]])}"
        more = f" (and {', '.join(printable[1:4])})" if unknown[1:] else ""
        raise WeightsError(f"{where}{first} is a key without a rule here{more}; remove it if the model ignores it")
    settings: dict[str, Any] = {}
    notes: list[str] = []
    for key, rule in table.items():
        if isinstance(rule, Read):
            settings[rule.argument] = _converted(rule, key, values.get(key, rule.default), where)
        elif isinstance(rule, Fixed) and key in values and not _is_one_of(values[key], rule.values):
            expected = " or ".join(map(repr, rule.values))
            raise WeightsError(f"{where}{key} is {_short(values[key])}; expected {expected}: nothing else is supported")
        elif isinstance(rule, Reported) and key in values and not _is_one_of(values[key], rule.values):
            notes.append(f"{where}{key} = {_short(values[key])}: {rule.note}")
    return settings, notes


def check_shapes(table: Table, settings: Mapping[str, Any], arguments: Mapping[str, Any], where: str) -> None:
    """Raises WeightsError if a key states another size than the shapes of the weights."""
    for key, rule in table.items():
        if not isinstance(rule, Read) or not rule.in_shapes or rule.argument not in arguments:
            continue
        stated, inferred = settings[rule.argument], arguments[rule.argument]
        if stated != inferred:
            raise WeightsError(f"{where}{key} makes {rule.argument} {stated}, but in the weights it is {inferred}")


def _converted(rule: Read, key: str, value: Any, where: str) -> Any:
    try:
        return rule.convert(value)
    except ValueError as error:
        raise WeightsError(f"{where}{key} is {_short(value)}; expected {error}") from None


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether a JSON value is one of `values`, where true does not equal 1."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def positive_int(value: Any) -> int:
    """A size: an integer in [1, 2**24)."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**24:
        raise ValueError("an integer in [1, 2**24)")
    return value


def finite_number(value: Any) -> float:
    """A finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError("a number")
    return float(value)


def eps(value: Any) -> float:
    """The eps of a LayerNorm."""
    if not 0 <= finite_number(value) < 1:
        raise ValueError("a number in [0, 1)")
    return float(value)


rate = eps
"""A dropout rate, which has the same range."""


def pair(value: Any) -> tuple[int, int]:
    """Height and width: two integers, or one for both."""
    if isinstance(value, list) and len(value) == 2:
        return positive_int(value[0]), positive_int(value[1])
    return positive_int(value), positive_int(value)


def patch(value: Any) -> int:
    """The side of a square patch."""
    rows, columns = pair(value)
    if rows != columns:
        raise ValueError("square patches, one integer")
    return rows


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_tanh"),
}
"""transformers' names of activations, and ours (modules.block)."""


def activation(value: Any) -> str:
    """Our name of an activation."""
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise ValueError(f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[value]


def hf_activation(name: str) -> str:
    """transformers' name of one of our activations."""
    return {"gelu_tanh": "gelu_pytorch_tanh"}.get(name, name)
