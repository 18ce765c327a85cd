"""A run as JSON keeps it, and back. What stands there is a stranger's: it names classes, and none but those that are expected."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from diptych.data.settings import Channels

KIND = "kind"


def kept(run: Any) -> dict[str, Any]:
    """A dataclass as plain values, with those within it. One that stands where several kinds may says which: {"kind": its
    class's name}.
    """
    told, hints = {}, get_type_hints(type(run))
    for field in fields(run):
        value = getattr(run, field.name)
        if is_dataclass(value):
            told[field.name] = ({KIND: type(value).__name__} if _union(hints[field.name]) else {}) | kept(value)
        else:
            told[field.name] = value
    return told


def thaw(kind: Any, value: Any, where: str = "run") -> Any:
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
        missing = [field.name for field in fields(kind) if _required(field) and field.name not in value]
        if missing:
            raise ValueError(f"{where}.{missing[0]}: is missing")
        return kind(**{name: thaw(hints[name], part, f"{where}.{name}") for name, part in value.items()})
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        if kind == Channels and isinstance(value, float):  # what each channel has now, all three had
            value = [value] * len(inner)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, got {value!r:.60}")
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        if len(kinds) != len(value):
            raise ValueError(f"{where}: expected {len(kinds)} values, got {len(value)}")
        return tuple(thaw(of, part, where) for of, part in zip(kinds, value, strict=True))
    return value


def _required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


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
