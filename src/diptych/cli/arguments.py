"""Command-line arguments to a config: each field has a typed flag by its dotted name; `training` needs no prefix."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from textwrap import TextWrapper
from typing import Any, TypeVar

from diptych.cli.errors import UsageError, find_misspelt
from diptych.config.choices import DEFAULT, Words, choose, chosen_members, fill, help_of_choice, walk
from diptych.config.spelling import suggest_name, suggest_setting
from diptych.config.validation import MAX_REPR_CHARS, check, preview
from diptych.runs.recipes import counted_by_steps, recipes, unprefixed, without_prefix
from diptych.utils.terminal import echo

T = TypeVar("T")
RULE = f" {'-' * 78}"


def pop_option(args: list[str], flag: str, default: str | None = None) -> str:
    """The value of `flag`, which is removed from `args`.

    Raises:
        UsageError: The flag is missing and has no default, or its value is empty. (An unset shell variable gives an
            empty value; as a path it would mean the current folder.)
    """
    for i, word in enumerate(args):
        name, joined, value = word.partition("=")
        if name != flag:
            continue
        if not joined and i + 1 < len(args) and not args[i + 1].startswith("--"):
            value = args.pop(i + 1)
        if not value.strip():
            raise UsageError(f"{flag} needs a value")
        del args[i]
        return value
    if default is None:
        near = find_misspelt(flag, args)
        raise UsageError(f"{flag} is missing{f'; did you mean it by {near}?' if near else ''}")
    return default


def pop_positional(args: list[str], name: str, remedy: str = "") -> str:
    """The first word, which is removed from `args`.

    Raises UsageError, with the `name` of what is expected and the `remedy`, if it is missing or a flag.
    """
    if not args or args[0].startswith("-"):
        raise UsageError(f"no {name.removeprefix('the ')} given{remedy and f'; {remedy}'}")
    return args.pop(0)


def pop_words(args: list[str]) -> list[str]:
    """All words that are neither flags nor the values of flags, which are removed from `args`; after ``--``, all."""
    words, flags_and_values, value_expected = [], [], False
    for i, word in enumerate(args):
        if word == "--":
            words += args[i + 1 :]
            break
        is_flag = word.startswith("--")
        (flags_and_values if is_flag or value_expected else words).append(word)
        value_expected = is_flag and "=" not in word
    args[:] = flags_and_values
    return words


def pop_folder(args: list[str], flag: str = "--out") -> Path:
    """The folder that `flag` names, which need not exist. Raises UsageError if it is a file."""
    path = Path(pop_option(args, flag))
    if path.exists() and not path.is_dir():
        raise UsageError(f"{flag} {path} is a file; give a folder")
    return path


def parse_int(text: str, flag: str, kind: Any) -> int:
    """An integer within the range of `kind` (such as `config.validation.Seed`). Raises UsageError."""
    digits = text.strip().removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > 4000:
        raise UsageError(f"{flag} must be an integer: got {preview(text)}")
    try:
        check(kind, int(text), flag)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return int(text)


def wants_help(args: Sequence[str]) -> bool:
    """Whether ``-h`` or ``--help`` is among `args`."""
    return bool({"-h", "--help"} & set(args))


def apply_overrides(
    config: T,
    args: Sequence[str],
    command: str,
    positionals: Sequence[str] = (),
) -> T:
    """`config` with the fields that `args` set.

    Args:
        config: A run, or another dataclass of settings.
        args: ``--field VALUE`` or ``--field=VALUE``; for optional dataclasses and unions see config/choices.py.
        command: Named in error messages.
        positionals: Fields that the command takes by position, which therefore have no flag.

    Raises:
        UsageError: A flag is unknown (the message suggests the nearest), a value does not fit its field, or a flag sets
            a field of a dataclass that is not chosen.
    """
    if not args:
        return config
    groups = unprefixed(config)
    args = [_tyro_flag(word, groups) for word in args]
    known = [flag for flag in flags(config) if flag.removeprefix("--") not in positionals]
    for word in args:
        if word.startswith("--") and (flag := word.partition("=")[0]) not in known:
            typed = _typed_flag(flag, config)
            suggestion = suggest_setting(typed, [_typed_flag(name, config) for name in known])
            raise UsageError(f"there is no {typed}{suggestion} (diptych {command} --help lists all)")
    config, args = choose(config, args)
    output = io.StringIO()
    try:
        with redirect_stderr(output), redirect_stdout(output):
            given = [word.partition("=")[0].removeprefix("--") for word in args]
            return counted_by_steps(_parse(config, args, command), given)
    except SystemExit:
        message = _one_line(_typed_flags(output.getvalue(), config))
    if extra := re.fullmatch(r"(?:Unrecognized options )?Unrecognized options: (.*)", message):
        message = _typed_flags(_stray_word(args, extra[1].split(" ")[0]), config)
    raise UsageError(message)


def _stray_word(args: Sequence[str], stray: str) -> str:
    """The error message for a word that is neither a flag nor the value of one."""
    before = args[: args.index(stray)] if stray in args else []
    flag = next((word for word in reversed(before) if word.startswith("--")), "")
    place = f" after {flag}, which takes one value" if flag else ""
    return f"Unrecognized options: {stray:.{MAX_REPR_CHARS}}{place}; quote a value that has blanks"


def show_help(config: Any, command: str, description: str | None, positionals: Sequence[str] = ()) -> None:
    """Prints a command's description, then the flag, type, meaning and default of every field of `config`.

    `positionals` are left out, as in `apply_overrides`.
    """
    sections = _help_sections(config, command)
    text = "\n\n".join("\n".join([f" {title}", *lines]) for title, lines in sections.items())
    for group in dict.fromkeys(unprefixed(config).values()):  # blanks instead of the prefix keep the columns aligned
        text = re.sub(rf"--{group}\.(\S+(?: \S+)*)", lambda m: f"--{m[1]}{' ' * len(group + '.')}", text)  # noqa: B023
    text = text.replace("{,", "{")  # the choice "" stands for a default only
    for name in positionals:  # the flag's line, and the lines on which its help continues
        text = re.sub(rf"^ +--{name} .*\n(?: {{8,}}.*\n)*", "", text, flags=re.MULTILINE)
    echo("\n".join([(description or "").strip(), "", *(line.rstrip() for line in text.splitlines())]))


def _help_sections(config: Any, command: str) -> dict[str, list[str]]:
    """The lines of help on each group of options, with those of every dataclass that can be chosen, by their title."""
    sections = _tyro_sections(fill(config), command)
    titles = ["options"]
    for flag, words in walk(config):
        path = flag.removeprefix("--")
        title = f"{path if words else path.rpartition('.')[0]} options".strip()
        titles.append(title)
        if words and DEFAULT in words:
            head, own = _divided(sections.get(title, [RULE]))
            sections[title] = [*head, *help_of_choice(config, flag, words), *own]
        elif words:
            sections |= _union_sections(config, flag, words, command)
    return {title: sections[title] for title in dict.fromkeys(titles) if title in sections}


def _union_sections(config: Any, flag: str, words: Words, command: str) -> dict[str, list[str]]:
    """The sections of help on a union: its own flag, then the options of each dataclass, and those of parts of them."""
    path, sections = flag.removeprefix("--"), {}
    lines = [RULE, *help_of_choice(config, flag, words)]
    for member in chosen_members(config, flag, words):
        of_member = _tyro_sections(fill(member), command, f"{path}.")
        _, own = _divided(of_member.pop("options"))
        lines += [f"  with {type(member).__name__}:", *own] if own else []
        sections |= of_member
    return {f"{path} options": lines, **sections}


def _divided(section: list[str]) -> tuple[list[str], list[str]]:
    """The heading of a section of help, and its options without -h."""
    first = next((i for i, line in enumerate(section) if re.match(r"  --\w", line)), len(section))
    return section[:first], section[first:]


def _tyro_sections(config: Any, command: str, prefix: str = "") -> dict[str, list[str]]:
    """tyro's help on each group of options, by its title; `prefix`: of the names of all flags and groups."""
    output = io.StringIO()
    with suppress(SystemExit), redirect_stdout(output):
        _parse(config, ["--help"], command)
    text = re.sub(r" +$", "", output.getvalue(), flags=re.MULTILINE)
    text = re.sub(r"^  --(?=\w)", f"  --{prefix}", text, flags=re.MULTILINE)
    text = re.sub(r"^(  --\w.*?\S) {2,}(?=\S)", r"\1\n        ", text, flags=re.MULTILINE)  # short flags
    text = re.sub(r"^ {8,}", " " * 8, text, flags=re.MULTILINE)
    titles = re.split(r"^ ((?:\S+ )?options)\n", text, flags=re.MULTILINE)[1:]
    names = [prefix + title if title != "options" else title for title in titles[::2]]
    return {name: lines.rstrip().splitlines() for name, lines in zip(names, titles[1::2], strict=True)}


def flags(config: Any) -> list[str]:
    """The flag of every field of `config`, by its dotted name; also of those within dataclasses that can be chosen."""
    return list(dict.fromkeys(flag for flag, _ in walk(config)))


def _parse(config: T, args: Sequence[str], command: str) -> T:
    import tyro  # takes 0.05 s

    return tyro.cli(
        type(config),
        default=config,
        args=args,
        prog=f"diptych {command}",
        use_underscores=True,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )


def _tyro_flag(word: str, groups: Mapping[str, str]) -> str:
    """A flag as tyro expects it: with underscores, and the prefix of its group (see `recipes.unprefixed`)."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    name = flag.removeprefix("--").replace("-", "_")
    group = groups.get(name.split(".")[0])
    return (f"--{group}." if group else "--") + name + equals + value


def _typed_flag(flag: str, config: Any) -> str:
    """A flag of tyro's as it is typed."""
    return f"--{without_prefix(flag.removeprefix('--'), config)}"


def _typed_flags(text: str, config: Any) -> str:
    """A text with tyro's flags as they are typed."""
    return re.sub(r"--\w+\.[\w.]+", lambda match: _typed_flag(match[0], config), text)


def _one_line(panel: str) -> str:
    """tyro's boxed error message as one line, without box, colours and headings."""
    text = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]|-{3,}", " ", panel)
    text = " ".join(text.split())
    for heading in (
        r"(Argument helptext|For full helptext|To see full helptext).*$",
        r"^[A-Z][a-z ]+ (?=[Ee]rror|invalid|Missing value)",
        r"^Error parsing \S+: (?=\S+ must )",
    ):
        text = re.sub(heading, "", text).strip()
    for python, plain in (
        (r"invalid literal for int\(\) with base 10: ('.*')", r"expected an integer, got \1"),
        (r"could not convert string to float: ('.*')", r"expected a number, got \1"),
    ):
        text = re.sub(python, plain, text)
    text = re.sub(r"invalid choice '(.*)' for argument '(\S+)'\. Expected one of \((.*)\)\.?", _invalid_choice, text)
    return text or "the arguments could not be parsed"


def _invalid_choice(match: re.Match[str]) -> str:
    """The message for a value that is not among a flag's choices, with the nearest; "" stands for a default only."""
    value, flag, listing = match.groups()
    choices = [choice for choice in re.findall(r"'([^']*)'", listing) if choice]
    suggestion = suggest_name(value, choices)
    return f"{flag}: expected one of {', '.join(choices)}, got {value!r}{suggestion}"


def list_recipes(kind: str = "Pretrain") -> str:
    """The names of all recipes of a kind for a help text: a paragraph for each system."""
    names: dict[str, list[str]] = {}
    for name in recipes(kind):
        names.setdefault(name.split(".")[0], []).append(name)
    wrap = TextWrapper(100, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(wrap.fill(" ".join(group)) for group in names.values())


def list_tasks(evaluations: Mapping[str, type]) -> str:
    """The tasks of a table by name, each with the first line of its settings' docstring, for a help text."""
    return "\n".join(f"  {name:15}  {(one.__doc__ or '').splitlines()[0]}" for name, one in evaluations.items())
