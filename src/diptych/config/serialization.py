"""Conversion of runs to and from the plain values of run.json.

A run.json is untrusted: a class that it names must be one of those that the field's type allows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from diptych.config.validation import allows_none, dataclasses_of, preview

KIND = "kind"
RECORD = {"kind": str, "run": dict, "facts": dict, "versions": dict, "machine": str, "command": str}
"""Keys of run.json and their types."""
TYPE_NAMES = {str: "text", dict: "a JSON object"}
MIN_FACTS = {"examples": 0, "captions_counted": 0, "unigram_entropy": 0, "code_entropy": 0, "candidates": 1}
"""Numeric facts and the least value of each."""


def to_json(run: Any) -> dict[str, Any]:
    """Plain values of a dataclass and of those within it.

    If a field's type is a union of several dataclasses, its value says which one: ``{"kind": class name}``.
    """
    values, hints = {}, get_type_hints(type(run))
    for field in fields(run):
        value = getattr(run, field.name)
        if is_dataclass(value):
            kind = {KIND: type(value).__name__} if len(dataclasses_of(hints[field.name])) > 1 else {}
            values[field.name] = kind | to_json(value)
        else:
            values[field.name] = value
    return values


def from_json(annotation: Any, value: Any, where: str = "run") -> Any:
    """Dataclass of type `annotation` from plain values. Raises ValueError that names the field that does not fit."""
    if value is None and allows_none(annotation):
        return None
    if members := dataclasses_of(annotation):
        annotation, value = _member(members, value, where)
    if is_dataclass(annotation) and isinstance(annotation, type):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object with fields, got {preview(value)}")
        hints = get_type_hints(annotation)
        unknown = set(value) - set(hints)
        if unknown:
            raise ValueError(f"{where}.{min(unknown)}: no such field; remove it")
        parts = {name: from_json(hints[name], part, f"{where}.{name}") for name, part in value.items()}
        missing = [field.name for field in fields(annotation) if _required(field) and field.name not in value]
        if missing:
            raise ValueError(f"{where}.{missing[0]}: required field is missing")
        return annotation(**parts)
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, got {preview(value)}")
        annotations = inner[:1] * len(value) if inner[1:] == (...,) else inner
        if len(annotations) != len(value):
            raise ValueError(f"{where}: expected {len(annotations)} values, got {len(value)}")
        return tuple(from_json(of, part, where) for of, part in zip(annotations, value, strict=True))
    return value


def _required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def check_record(record: Any, version: str) -> None:
    """Checks the types of a run.json's keys, its version and its facts.

    Raises ValueError if one does not fit, or if it was written by a later version than `version`, this package's.
    """
    for name, kind in RECORD.items():
        value = record.get(name) if isinstance(record, dict) else record
        if not isinstance(record, dict) or not isinstance(value, kind):
            raise ValueError(f"{name}: expected {TYPE_NAMES[kind]}, got {preview(value)}")
    check_version(record["versions"].get("diptych"), version)
    check_facts(record["facts"])


def check_version(written: Any, version: str) -> None:
    """Raises ValueError unless `written` is a version, and not later than `version`, this package's."""
    if not isinstance(written, str) or not re.fullmatch(r"\d{1,9}(\.\d{1,9})*\S{0,40}", written):
        raise ValueError(f"version: expected a version such as {version}, got {preview(written)}")
    if _release(written) > _release(version):
        raise ValueError(f"written by Diptych {written}, and this is {version}: install the later version")


def check_facts(facts: dict[str, Any]) -> None:
    """Raises ValueError if a fact measured from the training data has the wrong type or range."""
    for name, value in facts.items():
        if name == "precision" and value not in ("fp32", "bf16"):
            raise ValueError(f"facts.precision: expected fp32 or bf16, got {preview(value)}")
        if name == "chance_losses" and not (isinstance(value, dict) and all(map(_is_level, value.values()))):
            raise ValueError(f"facts.chance_losses: expected a value and a name of each, got {preview(value)}")
    for name, minimum in MIN_FACTS.items():
        if name in facts and not (_is_number(facts[name]) and facts[name] >= minimum):
            raise ValueError(f"facts.{name}: expected a number of at least {minimum}, got {preview(facts[name])}")


def _is_level(value: Any) -> bool:
    """Whether a value is the chance level of a loss: a number, and what has that loss in words."""
    return isinstance(value, dict) and _is_number(value.get("value")) and isinstance(value.get("name"), str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


def _release(version: str) -> tuple[int, ...]:
    """First three numbers of a version, for comparison."""
    return tuple(map(int, re.findall(r"\d+", f"{version}.0.0")[:3]))


def _member(members: tuple[type, ...], value: Any, where: str) -> tuple[type, Any]:
    """The dataclass among `members` that `value` names (one alone needs no name), and its fields. Raises ValueError."""
    if len(members) == 1:
        return members[0], value
    by_name = {kind.__name__: kind for kind in members}
    named = value.get(KIND) if isinstance(value, dict) else None
    if named not in list(by_name):
        got = f"{KIND} {preview(named)}" if isinstance(value, dict) else preview(value)
        raise ValueError(f"{where}: expected one of {', '.join(by_name)}, got {got}")
    return by_name[named], {name: part for name, part in value.items() if name != KIND}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
