"""diptych info SYSTEM|RECIPE

Prints a model's parameters by part, tokens and FLOPs of each method, and the published results that it should equal.

Examples:
  diptych info vilt
  diptych info albef.small
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from diptych.cli.arguments import pop_positional, wants_help
from diptych.cli.errors import UsageError
from diptych.config.published import Published
from diptych.config.spelling import suggest_name
from diptych.models.configs import PUBLISHED
from diptych.runs.recipes import recipe, recipes
from diptych.utils.terminal import echo, plain

if TYPE_CHECKING:
    from diptych.planning.info import Info

SHARED = "shared with the above"


def info_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        echo(f"{__doc__}\nSystems: {', '.join(PUBLISHED)}\n\ndiptych pretrain --help lists the recipes.")
        return
    name = pop_positional(args, "the system or recipe", f"systems: {', '.join(PUBLISHED)}")
    if args:
        raise UsageError(f"info takes only one system or recipe; remove {' '.join(args)}")
    if name not in (names := [*PUBLISHED, *recipes()]):
        suggestion = suggest_name(name, names)
        raise UsageError(f"there is no system or recipe {name!r}{suggestion}; systems: {', '.join(PUBLISHED)}")
    published = PUBLISHED.get(name)
    from diptych.planning.info import TEXT_TOKENS, info

    result, console = info(published or recipe(name)), Console(soft_wrap=True)
    console.print(_parameters(result, published.title if published else name))
    console.print(_methods(result, TEXT_TOKENS))
    if published:
        _print_published(console, name, published)


def _parameters(result: Info, title: str) -> Table:
    table = Table("part", title=plain(title), title_justify="left")
    table.add_column("parameters", justify="right")
    for part, count in result.parameters.items():
        table.add_row(f"model.{part}", f"{count:,}" if count else SHARED)
    for part, count in result.heads.items():
        table.add_row(f"heads.{part}", f"{count:,}" if count else SHARED)
    model, heads = sum(result.parameters.values()), sum(result.heads.values())
    table.add_row("model", f"{model:,}", style="bold")
    if heads:
        table.add_row("model and heads", f"{model + heads:,}", style="bold")
    return table


def _methods(result: Info, text_tokens: int) -> Table:
    title = f"one image, one text of {text_tokens} tokens (a multiply-add is two FLOPs)"
    table = Table("method", title=title, title_justify="left")
    for column in ("tokens out", "GFLOPs"):
        table.add_column(column, justify="right")
    for method in result.methods:
        table.add_row(method.name, str(method.tokens or "-"), f"{method.flops / 1e9:.2f}")
    return table


def _print_published(console: Console, name: str, published: Published) -> None:
    console.print(f"code: {published.code}")
    for model, count in published.parameters.items():
        console.print(f"published code, {model}: {count:,} parameters")
    for benchmark, result in published.results.items():
        console.print(f"published, {benchmark}: {result}")
    for file in published.weights:
        console.print(f"weights, {file.description}: {file.file} from {file.url}")
        if file.sha256:
            console.print(f"  SHA-256 {file.sha256}")
        if file.note:
            console.print(f"  {file.note}")
        console.print(f"  diptych import {published.system or name} {file.file} --out DIR")
