"""From words on the command line to a run: any field by its dotted name, typed, the common ones at top level."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeVar

import tyro

import diptych.recipes
from diptych.cli.refusal import UsageError
from diptych.train.settings import Training

T = TypeVar("T")
TOP = frozenset(field.name for field in fields(Training))  # fields of `training` that need no prefix
RENAMED = {"--from": "--start"}


def take(words: list[str], flag: str, default: str | None = None) -> str:
    """The value of `flag`, removed from `words`. Raises UsageError where it is missing and has no default."""
    for i, word in enumerate(words):
        if word == flag and i + 1 < len(words):
            value = words[i + 1]
            del words[i : i + 2]
            return value
        if word.startswith(flag + "="):
            del words[i]
            return word.split("=", 1)[1]
    if default is None:
        raise UsageError(f"{flag} is missing")
    return default


def overridden(run: T, words: list[str], command: str, top: frozenset[str] = TOP) -> T:
    """The run with the fields that `words` name replaced. Raises UsageError, which names the nearest field."""
    words = [_dotted(word, top) for word in words]
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(
                type(run), default=run, args=words, prog=f"diptych {command}", use_underscores=True,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            )  # fmt: skip
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line(said.getvalue())) from None


def _dotted(word: str, top: frozenset[str]) -> str:
    flag, _, value = word.partition("=")
    flag = RENAMED.get(flag, flag)
    if flag.removeprefix("--").split(".")[0] in top:
        flag = "--training." + flag.removeprefix("--")
    return flag + (f"={value}" if _ else "")


def _one_line(panel: str) -> str:
    """tyro's boxed message, without the box."""
    text = re.sub(r"[╭╮╰╯│─┌┐└┘|]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", panel))
    text = " ".join(text.split()).removeprefix("Parsing error").strip()
    for noise in (
        r"(For full helptext|To see full helptext).*$",
        r"^(Unrecognized options|Value error)\s+(?=Unrec|Error)",
    ):
        text = re.sub(noise, "", text).strip()
    return text or "arguments not understood"


def recipe(name: str) -> Any:
    """The run that a recipe makes, by its name ``module.function``. Raises UsageError naming the nearest."""
    known = recipes()
    if name not in known:
        from difflib import get_close_matches

        near = get_close_matches(name, known, 1, 0.3)
        raise UsageError(
            f"there is no recipe {name!r}"
            + (f"; did you mean {near[0]}?" if near else "")
            + f" There are: {', '.join(known)}"
        )
    module, function = name.split(".")
    return getattr(import_module(f"diptych.recipes.{module}"), function)()


def recipes() -> list[str]:
    """All recipes there are."""
    found = []
    for info in iter_modules(diptych.recipes.__path__):
        module = import_module(f"diptych.recipes.{info.name}")
        found += [
            f"{info.name}.{name}"
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__ and not isinstance(value, type)
            and not name.startswith("_") and value.__annotations__.get("return") == "Pretrain"
        ]  # fmt: skip
    return found


def positional(words: list[str], what: str) -> str:
    """The first word, which must not be a flag."""
    if not words or words[0].startswith("-"):
        raise UsageError(f"{what} is missing")
    return words.pop(0)


def folder(words: list[str], flag: str = "--out") -> Path:
    return Path(take(words, flag))
