"""Fields whose value is one of several dataclasses, or None, on the command line and by dotted names in Python.

tyro would make a subcommand of each. Here such a field has a flag of its own: ``--objectives.itc none`` removes the
dataclass, ``--objectives.itc default`` adds it with its defaults, and ``--objectives.itm.negatives HardNegatives``
chooses one of several. The flag of a field within it, as ``--objectives.mlm.rate 0.3``, adds an absent one too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache, reduce
from textwrap import wrap
from typing import Any, TypeVar, get_type_hints

from diptych.config.spelling import suggest_name
from diptych.config.validation import allows_none, dataclasses_of, preview

T = TypeVar("T")
Words = Mapping[str, type | None]
"""The values of a choice's flag: names of dataclasses, or "default" for the only one; "none" for None."""

ABSENT, DEFAULT = "none", "default"


@cache
def choices_of(config_class: type) -> dict[str, Words]:
    """The fields of a dataclass that are choices, by name.

    A union without a default, as a run's model, is none: the recipe chooses.
    """
    hints, choices = get_type_hints(config_class), {}
    for field in fields(config_class):
        members = dataclasses_of(hints[field.name])
        absent: Words = {ABSENT: None} if allows_none(hints[field.name]) else {}
        if len(members) + len(absent) > 1 and _has_default(field) and all(map(_is_complete, members)):
            names = [DEFAULT] if len(members) == 1 else [member.__name__ for member in members]
            choices[field.name] = {**absent, **dict(zip(names, members, strict=True))}
    return choices


def walk(config: Any, prefix: str = "--") -> Iterator[tuple[str, Words | None]]:
    """The flag of every field of `config` by its dotted name, also within dataclasses that could be chosen.

    Yields: each flag, and its words if the field is a choice; a flag of several dataclasses once for each.
    """
    choices = choices_of(type(config))
    for field in fields(config):
        value, flag = getattr(config, field.name), prefix + field.name
        if words := choices.get(field.name):
            yield flag, words
            for member in filter(None, words.values()):
                yield from walk(value if isinstance(value, member) else member(), f"{flag}.")
        elif is_dataclass(value):
            yield from walk(value, f"{flag}.")
        else:
            yield flag, None


def choose(config: T, args: Sequence[str]) -> tuple[T, list[str]]:
    """`config` with the dataclasses that `args` choose, and the `args` that set their fields.

    Raises ValueError: a choice has no such word, or a flag sets a field of a dataclass that is not chosen.
    """
    choices = {flag: words for flag, words in walk(config) if words}
    chosen, rest = _split(args, choices)
    for flag in sorted(chosen, key=lambda flag: flag.count(".")):  # the outer ones first
        member = choices[flag][chosen[flag]]
        config = _set(_add_owners(config, flag, choices, chosen), flag, member and member())
    for word in rest:
        if word.startswith("--"):
            config = _add_owners(config, word.partition("=")[0], choices, chosen)
    return config, rest


def _split(args: Sequence[str], choices: Mapping[str, Words]) -> tuple[dict[str, str], list[str]]:
    """The word given for each flag of a choice, and the other arguments."""
    chosen, rest, words = {}, [], list(args)
    while words:
        word = words.pop(0)
        flag, joined, value = word.partition("=")
        if flag not in choices:
            rest.append(word)
            continue
        if not joined:
            value = words.pop(0) if words and not words[0].startswith("--") else ""
        if value not in choices[flag]:
            raise ValueError(_unknown_word(flag, value, choices[flag]))
        chosen[flag] = value
    return chosen, rest


def _unknown_word(flag: str, value: str, words: Words) -> str:
    """The message for a word that a choice does not have; it names the flags of an optional dataclass's fields too."""
    only = words.get(DEFAULT)
    inner = [f"{flag}.{field.name}" for field in fields(only)] if only else []
    settings = f" (its settings: {', '.join(inner)})" if inner else ""
    got = f"got {preview(value)}{suggest_name(value, words)}" if value else "got nothing"
    return f"{flag}: expected {' or '.join(words)}, {got}{settings}"


def _add_owners(config: T, flag: str, choices: Mapping[str, Words], chosen: Mapping[str, str]) -> T:
    """`config` with every dataclass that the field of `flag` is within; absent ones are added with their defaults.

    Raises ValueError if another one, or none, has been chosen.
    """
    parts = flag.removeprefix("--").split(".")
    for i in range(1, len(parts)):
        owner, field = "--" + ".".join(parts[:i]), parts[i]
        if owner not in choices:
            continue
        value, members = _get(config, owner), [member for member in choices[owner].values() if member]
        having = [member for member in members if field in _names(member)]
        if value is None and chosen.get(owner) == ABSENT:
            raise ValueError(f"{flag} is a setting of {owner}, which is {ABSENT}: remove one of the two flags")
        if value is None:
            config = _set(config, owner, having[0]())
        elif type(value) not in having:
            names = " or ".join(member.__name__ for member in having)
            raise ValueError(
                f"{flag} is a setting of {names}, and {owner} is {type(value).__name__}: give {owner} {names}"
            )
    return config


def fill(config: T) -> T:
    """`config` with every absent dataclass present, with its defaults: for help."""
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if value is None and (words := choices_of(type(config)).get(field.name)):
            value = next(member for member in words.values() if member)()
        if is_dataclass(value):
            config = replace(config, **{field.name: fill(value)})  # type: ignore[type-var]
    return config


def help_of_choice(config: Any, flag: str, words: Words) -> list[str]:
    """The help of a choice's flag: its words, what each stands for, and the one that `config` has."""
    value = _value(config, flag, words)
    if DEFAULT in words:
        text = f"{ABSENT}: left out; {DEFAULT}: with the defaults below"
        current = ABSENT if value is None else "as below"
    else:
        text = " ".join(f"{word}: {(member.__doc__ or '').splitlines()[0]}" for word, member in words.items() if member)
        current = ABSENT if value is None else type(value).__name__
    wrapped = wrap(f"{text} (default: {current})", 80, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return [f"  {flag} {{{','.join(words)}}}", *wrapped]


def chosen_members(config: Any, flag: str, words: Words) -> list[Any]:
    """Each dataclass that a choice has: with its defaults, or as it is in `config`."""
    value = _value(config, flag, words)
    return [value if isinstance(value, member) else member() for member in words.values() if member]


def _value(config: Any, flag: str, words: Words) -> Any:
    """The value of a choice; within a dataclass that `config` does not have, the first one's default."""
    try:
        return _get(config, flag)
    except AttributeError:
        first = next(iter(words.values()))
        return first and first()


def _has_default(field: Any) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _is_complete(member: type) -> bool:
    """Whether all fields of a dataclass have defaults."""
    return all(map(_has_default, fields(member)))


def _names(member: type) -> set[str]:
    return {field.name for field in fields(member)}


def _get(config: Any, flag: str) -> Any:
    """The value of the field with this flag. Raises AttributeError."""
    return reduce(getattr, flag.removeprefix("--").split("."), config)


def _set(config: T, flag: str, value: Any) -> T:
    """`config` with another value of the field with this flag."""
    name, _, inner = flag.removeprefix("--").partition(".")
    return replace(config, **{name: _set(getattr(config, name), inner, value) if inner else value})  # type: ignore[type-var]
