"""diptych describe SYSTEM|RECIPE: parameters by part, FLOPs, tokens, and the published figures it should equal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from diptych.cli.arguments import positional, recipe
from diptych.cli.refusal import UsageError
from diptych.recipes.published import PUBLISHED


def describe_command(words: list[str]) -> None:
    if words[:1] in ([], ["-h"], ["--help"]):
        print(f"{__doc__}\n\nsystems: {', '.join(PUBLISHED)}")
        return
    name = positional(words, f"the system ({', '.join(PUBLISHED)}) or recipe")
    if words:
        raise UsageError(f"describe takes one system or recipe, not {' '.join(words)} besides")
    known = PUBLISHED.get(name)
    run = recipe(known.recipe if known else name)
    from diptych.jobs.describe import describe

    found, console = describe(run), Console(soft_wrap=True)
    table = Table(title=known.title if known else name, title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    for part, count in found.parameters.items():
        table.add_row(f"model.{part}", f"{count:,}")
    for part, count in found.heads.items():
        table.add_row(f"heads.{part}", f"{count:,}")
    model, heads = sum(found.parameters.values()), sum(found.heads.values())
    table.add_row("model", f"{model:,}", style="bold")
    if heads:
        table.add_row("model and heads", f"{model + heads:,}", style="bold")
    console.print(table)
    text = f" and {found.words} text tokens" if found.words else ""
    console.print(
        f"one forward pass of {found.image_tokens} image tokens{text}: {found.flops / 1e9:.2f} GFLOP (a multiply-add is two)"
    )
    if known:
        console.print(f"code: {known.code}")
        for what, count in known.parameters.items():
            console.print(f"published code, {what}: {count:,} parameters")
        for what, result in known.results.items():
            console.print(f"published, {what}: {result}")
