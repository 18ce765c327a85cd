"""diptych info SYSTEM|RECIPE: parameters by part, FLOPs, tokens, and the published figures it should equal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from diptych.cli.arguments import asks_help, positional, recipe, recipes
from diptych.cli.refusal import UsageError
from diptych.cli.suggestions import nearest
from diptych.models.configs import PUBLISHED
from diptych.utils.terminal import echo, plain

SHARED = "shared with the above"


def info_command(words: list[str]) -> None:
    if asks_help(words) or not words:
        echo(f"{__doc__}\n\nsystems: {', '.join(PUBLISHED)}")
        return
    name = positional(words, f"the system ({', '.join(PUBLISHED)}) or recipe")
    if words:
        raise UsageError(f"describe takes one system or recipe, not {' '.join(words)} besides")
    if name not in (names := [*PUBLISHED, *recipes()]):
        raise UsageError(
            f"there is no system or recipe {name!r}{nearest(name, names)}; systems: {', '.join(PUBLISHED)}"
        )
    known = PUBLISHED.get(name)
    asked = known or recipe(name)
    from diptych.planning.info import WORDS, info

    found, console = info(asked), Console(soft_wrap=True)
    table = Table(title=known.title if known else plain(name), title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    for part, count in found.parameters.items():
        table.add_row(f"model.{part}", f"{count:,}" if count else SHARED)
    for part, count in found.heads.items():
        table.add_row(f"heads.{part}", f"{count:,}" if count else SHARED)
    model, heads = sum(found.parameters.values()), sum(found.heads.values())
    table.add_row("model", f"{model:,}", style="bold")
    if heads:
        table.add_row("model and heads", f"{model + heads:,}", style="bold")
    console.print(table)
    table = Table(title=f"one image, one text of {WORDS} tokens (a multiply-add is two)", title_justify="left")
    for column in ("verb", "tokens out", "GFLOP"):
        table.add_column(column, justify="left" if column == "verb" else "right")
    for verb in found.verbs:
        table.add_row(verb.name, str(verb.tokens or "-"), f"{verb.flops / 1e9:.2f}")
    console.print(table)
    if known:
        console.print(f"code: {known.code}")
        for what, count in known.parameters.items():
            console.print(f"published code, {what}: {count:,} parameters")
        for what, result in known.results.items():
            console.print(f"published, {what}: {result}")
        for file in known.weights:
            console.print(f"weights, {file.what}: {file.file} from {file.where}")
            if file.sha256:
                console.print(f"  SHA-256 {file.sha256}")
            if file.note:
                console.print(f"  {file.note}")
            console.print(f"  diptych import {known.system or name} {file.file} --out DIR")
