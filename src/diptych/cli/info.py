"""diptych info SYSTEM|RECIPE|RUN

Prints a model's parameters by part, tokens and FLOPs of each method, and the published results that it should equal. Of
a run, or an imported model, it prints what config.json says of it, and what it can do.

Examples:
  diptych info vilt
  diptych info albef.small
  diptych info runs/clip
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from diptych.cli.arguments import pop_positional, wants_help
from diptych.cli.errors import UsageError
from diptych.config.published import Published
from diptych.config.spelling import suggest_name
from diptych.inference.saved_model import read_config
from diptych.models.configs import PUBLISHED, model_name
from diptych.runs.recipes import recipe, recipes
from diptych.utils.terminal import echo, plain

if TYPE_CHECKING:
    from diptych.planning.info import Info

SHARED = "shared with the above"


def info_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        echo(f"{__doc__}\nSystems: {', '.join(PUBLISHED)}\n\ndiptych pretrain --help lists the recipes.")
        return
    name = pop_positional(args, "the system, recipe or run", f"systems: {', '.join(PUBLISHED)}")
    if args:
        raise UsageError(f"info takes only one system, recipe or run; remove {' '.join(args)}")
    if Path(name).is_dir() and name not in PUBLISHED:
        return _print_saved(Path(name))
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


def _print_saved(folder: Path) -> None:
    """Prints a line for each fact of a saved model. Raises RunError, WeightsError."""
    saved = read_config(folder)
    from diptych.inference.folder import weight_shapes
    from diptych.runs.load_model import load_model
    from diptych.tasks.operations import OPERATIONS, why_unsupported
    from diptych.training.distributed import pick_device

    loaded, labels = load_model(folder, pick_device("cpu")), saved.labels
    origin = f"imported from {saved.imported.checkpoint}" if saved.imported else saved.recipe
    images = "x".join(map(str, saved.images.size or (f"shorter side {saved.images.shorter_side}",)))
    facts = {
        "model": f"{model_name(saved.model)}, {sum(t.numel() for t in weight_shapes(folder).values()):,} weights",
        "from": origin,
        "task": f"{saved.task} (trained with {', '.join(saved.losses) or 'no objective'})",
        "heads": ", ".join(saved.heads),
        "labels": labels and f"{len(labels):,}: {', '.join(labels[:5])}{' …' if len(labels) > 5 else ''}",
        "images": images if saved.embedders.image == "own" else f"{images}, as features: {saved.embedders.image}",
        "vocabulary": Path(saved.vocabulary).name,
        "can": ", ".join(name for name in OPERATIONS if not why_unsupported(loaded, name)),
    }
    for name, fact in facts.items():
        if fact:
            echo(f"{name:12}{fact}")


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
