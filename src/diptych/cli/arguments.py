"""From words on the command line to a run: any field by its dotted name, typed, the common ones at top level."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from inspect import isfunction, signature
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeVar

import tyro

import diptych.models
from diptych.cli.refusal import UsageError
from diptych.cli.suggestions import meant, misspelt, nearest
from diptych.config.training import Training
from diptych.config.validation import SHOWN, check
from diptych.utils.terminal import echo

T = TypeVar("T")
TOP = frozenset(field.name for field in fields(Training))  # fields of `training` that need no prefix
RENAMED = {"--from": "--init_from"}


def take(words: list[str], flag: str, default: str | None = None) -> str:
    """The value of `flag`, removed from `words`. Raises UsageError where it is missing and has no default, or is empty, as an
    unset variable of a shell is: as a path that would be the current folder.
    """
    for i, word in enumerate(words):
        name, joined, value = word.partition("=")
        if name != flag:
            continue
        if not joined and i + 1 < len(words) and not words[i + 1].startswith("--"):
            value = words.pop(i + 1)
        if not value.strip():
            raise UsageError(f"{flag} needs a value")
        del words[i]
        return value
    if default is None:
        near = misspelt(flag, words)
        raise UsageError(f"{flag} is missing{f'; did you mean it by {near}?' if near else ''}")
    return default


def positional(words: list[str], what: str) -> str:
    """The first word, which must not be a flag."""
    if not words or words[0].startswith("-"):
        raise UsageError(f"{what} is missing")
    return words.pop(0)


def whole(text: str, flag: str, kind: Any) -> int:
    """A whole number of a kind that has a range (ranges.Seed). Raises UsageError."""
    digits = text.strip().removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > 4000:
        raise UsageError(f"{flag} must be a whole number: got {text[:SHOWN]!r}")
    try:
        check(kind, int(text), flag)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return int(text)


def folder(words: list[str], flag: str = "--out") -> Path:
    path = Path(take(words, flag))
    if path.exists() and not path.is_dir():
        raise UsageError(f"{flag} {path} is a file; give a folder")
    return path


def asks_help(words: Sequence[str]) -> bool:
    return bool({"-h", "--help"} & set(words))


def overridden(run: T, words: Sequence[str], command: str, top: frozenset[str] = TOP, placed: Sequence[str] = ()) -> T:
    """The run with the fields that `words` name replaced, but for those that are `placed`, told by where they stand.

    Raises UsageError, which names the nearest field.
    """
    words, said = [_dotted(word, top) for word in words], io.StringIO()
    known = [flag for flag in flags(run) if flag.removeprefix("--") not in placed]
    for word in words:
        if word.startswith("--") and (flag := word.partition("=")[0]) not in known:
            short = [name.replace("--training.", "--") for name in known]
            flag = flag.replace("--training.", "--")
            raise UsageError(f"there is no {flag}{meant(flag, short)} (diptych {command} --help lists all)")
    try:
        with redirect_stderr(said), redirect_stdout(said):
            return _parsed(run, words, command)
    except SystemExit:
        message = _one_line(said.getvalue())
        if extra := re.fullmatch(r"(?:Unrecognized options )?Unrecognized options: (.*)", message):
            raise UsageError(_not_a_value(words, extra[1].split(" ")[0])) from None
        raise UsageError(message) from None


def _not_a_value(words: Sequence[str], extra: str) -> str:
    """What is said of a word that is neither a flag nor the value of one."""
    at = words.index(extra) if extra in words else 0
    before = next((word for word in reversed(words[:at]) if word.startswith("--")), "")
    behind = f" behind {before.replace('--training.', '--')}, which takes one value" if before else ""
    return f"Unrecognized options: {extra:.{SHOWN}}{behind}; quote a value that has blanks"


def show_help(run: Any, command: str, purpose: str | None, placed: Sequence[str] = ()) -> None:
    """Prints what a command is for, then every field that it takes, but for those `placed`: see `overridden`."""
    said = io.StringIO()
    with suppress(SystemExit), redirect_stdout(said):
        _parsed(run, ["--help"], command)
    # the fields of `training` stand at top level; what the flag loses its column gains
    text = re.sub(r"--training\.(\S+(?: \S+)*)", lambda m: f"--{m[1]}{' ' * 9}", said.getvalue())
    for name in placed:  # with the lines that its help goes on in
        text = re.sub(rf"^ +--{name} .*\n(?: {{8,}}.*\n)*", "", text, flags=re.MULTILINE)
    start = re.search(r"^\W*options\W*$", text, re.MULTILINE)
    lines = text[start.start() if start else 0 :].splitlines()
    echo("\n".join([(purpose or "").strip(), "", *(line.rstrip() for line in lines)]))


def flags(run: Any, prefix: str = "--") -> list[str]:
    """Every flag that replaces a field of `run`, by its dotted name."""
    found = []
    for field in fields(run):
        value = getattr(run, field.name)
        found += flags(value, f"{prefix}{field.name}.") if is_dataclass(value) else [prefix + field.name]
    return found


def _parsed(run: T, words: Sequence[str], command: str) -> T:
    return tyro.cli(
        type(run), default=run, args=words, prog=f"diptych {command}", use_underscores=True,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )  # fmt: skip


def _dotted(word: str, top: frozenset[str]) -> str:
    """A flag of the command line as tyro knows it."""
    if not word.startswith("--"):
        return word
    flag, by, value = word.partition("=")
    name = RENAMED.get(flag, flag).removeprefix("--").replace("-", "_")
    return ("--training." if name.split(".")[0] in top else "--") + name + by + value


def _one_line(panel: str) -> str:
    """tyro's boxed message, without box, colours and headings."""
    text = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]|-{3,}", " ", panel).replace("--training.", "--")
    text = " ".join(text.split())
    for noise in (
        r"(Argument helptext|For full helptext|To see full helptext).*$",
        r"^[A-Z][a-z ]+ (?=[Ee]rror|invalid|Missing value)",
        r"^Error parsing \S+: (?=\S+ must )",
    ):
        text = re.sub(noise, "", text).strip()
    for pythons, plain in (
        (r"invalid literal for int\(\) with base 10: ('.*')", r"\1 is no whole number"),
        (r"could not convert string to float: ('.*')", r"\1 is no number"),
    ):
        text = re.sub(pythons, plain, text)
    return text or "arguments not understood"


def recipe(name: str, kind: str = "Pretrain") -> Any:
    """The run that a recipe makes, by its name ``system.function``. Raises UsageError naming the nearest."""
    known = recipes(kind)
    if name not in known:
        raise UsageError(
            f"there is no recipe {name!r}{nearest(name, known, 3)} (diptych {kind.lower()} --help lists all {len(known)})"
        )
    system, function = name.split(".")
    return getattr(import_module(recipe_modules()[system]), function)()


def recipes(kind: str = "Pretrain") -> list[str]:
    """The names of all recipes of a kind: public functions that return a Pretrain, or a Finetune, and need no argument."""
    found = []
    for system, module in recipe_modules().items():
        for name, value in vars(import_module(module)).items():
            if isfunction(value) and not name.startswith("_") and value.__module__ == module:
                made = signature(value)
                needs = any(p.default is p.empty for p in made.parameters.values())
                found += [f"{system}.{name}"] * (made.return_annotation == kind and not needs)
    return found


@cache
def recipe_modules() -> dict[str, str]:
    """The module that holds each system's recipes, and the demo's."""
    systems = [info.name for info in iter_modules(diptych.models.__path__) if info.ispkg]
    modules = {system: f"diptych.models.{system}.recipes" for system in systems}
    found = {system: module for system, module in modules.items() if find_spec(module)} | {
        "demo": "diptych.runs.demo_recipes"
    }
    return dict(sorted(found.items()))
