"""A run as JSON keeps it, and back. What stands there is a stranger's: it names classes, and none but those that are expected."""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from diptych.config.data import Channels

KIND = "kind"
RECORD = {"kind": str, "run": dict, "facts": dict, "versions": dict, "machine": str, "command": str}
"""What run.json holds, by name."""
WORDS = {str: "text", dict: "names and values"}
TEXTS = ("answers", "classes")
COUNTED = {"examples": 0, "captions_counted": 0, "unigram_entropy": 0, "code_entropy": 0, "candidates": 1}
"""Facts that are numbers, and the least that each can be."""


def to_json(run: Any) -> dict[str, Any]:
    """A dataclass as plain values, with those within it. One that stands where several kinds may says which: {"kind": its
    class's name}.
    """
    told, hints = {}, get_type_hints(type(run))
    for field in fields(run):
        value = getattr(run, field.name)
        if is_dataclass(value):
            told[field.name] = ({KIND: type(value).__name__} if _union(hints[field.name]) else {}) | to_json(value)
        else:
            told[field.name] = value
    return told


def from_json(kind: Any, value: Any, where: str = "run") -> Any:
    """A dataclass again, from the plain values that JSON kept. Raises ValueError naming the field that does not fit."""
    if _union(kind):
        kind, value = _member(kind, value, where)
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: {value!r:.60} has no fields")
        hints = get_type_hints(kind)
        unknown = set(value) - set(hints)
        if unknown:
            raise ValueError(f"{where}.{min(unknown)}: no such field")
        parts = {name: from_json(hints[name], part, f"{where}.{name}") for name, part in value.items()}
        missing = [field.name for field in fields(kind) if _required(field) and field.name not in value]
        if missing:
            raise ValueError(f"{where}.{missing[0]}: is missing")
        return kind(**parts)
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        if kind == Channels and isinstance(value, float):  # what each channel has now, all three had
            value = [value] * len(inner)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, got {value!r:.60}")
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        if len(kinds) != len(value):
            raise ValueError(f"{where}: expected {len(kinds)} values, got {len(value)}")
        return tuple(from_json(of, part, where) for of, part in zip(kinds, value, strict=True))
    return value


def _required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def check_record(record: Any, version: str) -> None:
    """Raises ValueError unless what stands around the run in a run.json has the types that `write_run` gives it, and was not
    written by a later version than `version`, this one's.
    """
    for name, kind in RECORD.items():
        if not isinstance(record, dict) or not isinstance(record.get(name), kind):
            raise ValueError(
                f"{name}: expected {WORDS[kind]}, got {_shown(record.get(name) if isinstance(record, dict) else record)}"
            )
    written = record["versions"].get("diptych")
    if not isinstance(written, str) or not re.fullmatch(r"\d{1,9}(\.\d{1,9})*\S{0,40}", written):
        raise ValueError(f"versions.diptych: expected a version such as {version}, got {_shown(written)}")
    if _numbers(written) > _numbers(version):
        raise ValueError(f"it was written by Diptych {written}, this is {version}: install that one")
    check_facts(record["facts"])


def check_facts(facts: dict[str, Any]) -> None:
    """Raises ValueError where a fact that was counted in the data has another type than it is counted in."""
    for name, value in facts.items():
        if name in TEXTS and not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
            raise ValueError(f"facts.{name}: expected a list of texts, got {_shown(value)}")
        if name in ("system", "task") and not isinstance(value, str):
            raise ValueError(f"facts.{name}: expected text, got {_shown(value)}")
        if name == "precision" and value not in ("fp32", "bf16"):
            raise ValueError(f"facts.precision: expected fp32 or bf16, got {_shown(value)}")
        if name == "given" and not (isinstance(value, dict) and all(isinstance(text, str) for text in value.values())):
            raise ValueError(f"facts.given: expected names and texts, got {_shown(value)}")
    for name, least in COUNTED.items():
        if name in facts and not (_number(facts[name]) and facts[name] >= least):
            raise ValueError(f"facts.{name}: expected a number of at least {least}, got {_shown(facts[name])}")
    prior = facts.get("prior")
    if prior is not None and not (isinstance(prior, list) and all(_number(p) and 0 <= p <= 1 for p in prior)):
        raise ValueError(f"facts.prior: expected a list of shares, got {_shown(prior)}")
    if prior is not None and len(prior) != len(facts.get("answers", [])):
        raise ValueError(
            f"facts.prior: expected one for each of {len(facts.get('answers', []))} answers, got {len(prior)}"
        )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


def _numbers(version: str) -> tuple[int, ...]:
    """The first three numbers of a version, by which versions are ordered."""
    return tuple(map(int, re.findall(r"\d+", f"{version}.0.0")[:3]))


def _shown(value: Any) -> str:
    return f"{value!r:.60}"


def _union(kind: Any) -> bool:
    return get_origin(kind) is Union or type(kind).__name__ == "UnionType"


def _member(union: Any, value: Any, where: str) -> tuple[Any, Any]:
    """Which of a union's dataclasses `value` is, and its fields. Runs from before the kind was kept are known by those: the one
    kind that has them all, and lacks the fewest (a field may be newer than what was kept). Raises ValueError.
    """
    members = {kind.__name__: kind for kind in get_args(union) if isinstance(kind, type) and is_dataclass(kind)}
    if not isinstance(value, dict):
        raise ValueError(f"{where}: fits none of {', '.join(members)}: it is {value!r:.60}")
    if KIND in value:
        if value[KIND] not in list(members):
            raise ValueError(f"{where}: {value[KIND]!r:.60} is none of {', '.join(members)}")
        return members[value[KIND]], {name: part for name, part in value.items() if name != KIND}
    names = {kind: {f.name for f in fields(kind)} for kind in members.values()}
    missing = {
        kind: len(own - set(value)) for kind, own in names.items() if own >= set(value) and len(own) <= 2 * len(value)
    }
    fewest = min(missing.values(), default=0)
    fitting = [kind for kind in missing if missing[kind] == fewest]
    if len(fitting) != 1:
        raise ValueError(f"{where}: fits {'several' if fitting else 'none'} of {union}")
    return fitting[0], value
