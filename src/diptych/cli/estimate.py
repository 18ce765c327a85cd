"""diptych estimate RECIPE --gpus 8xA100 [--utilisation 0.6] [--data DATA] [--batch_size N] [--any.field VALUE]

What a run will take: tokens, floating-point operations, memory on each rank, hours, and what bounds them. One step is made
here on a few samples and everything in it is counted, so give the data that will be learned from, where you have it.

--gpus 8xA100, L4, …: how many of which. cpu:2: this machine's processor with two threads, whose speed is measured.
--utilisation 0.6: the share of their peak that devices reach in matrix products.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from diptych.cli.arguments import asks_help, overridden, positional, recipe, recipes, take
from diptych.cli.refusal import UsageError
from diptych.planning.accelerators import ACCELERATORS, chosen
from diptych.utils.terminal import echo


def estimate_command(words: list[str]) -> None:
    if asks_help(words) or not words:
        echo(f"{__doc__}\naccelerators: {', '.join(ACCELERATORS)}, cpu\nrecipes: {', '.join(recipes())}")
        return
    name = positional(words, "the recipe (diptych estimate --help lists them)")
    gpus, said = take(words, "--gpus"), take(words, "--utilisation", "0.6")
    chosen(gpus)
    try:
        utilisation = float(said)
    except ValueError:
        raise UsageError(f"--utilisation is a share of the peak, not {said!r}") from None
    run = overridden(recipe(name), words, f"plan {name}")

    from diptych.planning.estimate import estimate

    console = Console(soft_wrap=True)
    console.print(f"{name}: one step is made here and counted ...", highlight=False)
    found = estimate(run, gpus, utilisation)
    counts = found.counted
    device, steps, batch = found.device, run.training.steps, run.training.batch
    tokens = counts.words + counts.patches
    console.print(f"{name} on {found.ranks} x {device.name} ({device.source})", highlight=False)
    table = Table(show_header=False)
    table.add_column("what")
    table.add_column("how much", justify="right")
    table.add_row("parameters, trained and all", f"{counts.trained / 1e6:,.1f} M, {counts.parameters / 1e6:,.1f} M")
    table.add_row("tokens of a sample, text + image", f"{counts.words:.0f} + {counts.patches:.0f}")
    table.add_row(f"tokens of the run, {steps:,} steps of {batch:,}", f"{tokens * steps * batch:.3g}")
    table.add_row(
        "operations of a step, and of the run", f"{found.operations:.3g}, {found.operations * steps:.3g} FLOP"
    )
    for what, amount in found.memory.items():
        table.add_row(f"memory of a rank: {what}", f"{amount / 1e9:,.2f} GB")
    table.add_row(
        f"memory of a rank, micro-batch {found.micro}",
        f"{sum(found.memory.values()) / 1e9:,.2f} of {device.memory / 1e9:,.0f} GB",
    )
    for what, seconds in found.seconds.items():
        table.add_row(f"a step: {what}", f"{seconds * 1e3:,.1f} ms")
    overall = found.operations / found.ranks / found.step / (device.half if found.half else device.single)
    table.add_row(f"a step, at {utilisation:.0%} of the peak in products", f"{found.step * 1e3:,.1f} ms")
    table.add_row("share of the peak overall", f"{overall:.0%}")
    table.add_row("hours", f"{found.hours:,.2f}")
    table.add_row("bound by", found.bound if found.fits else "memory: it does not fit")
    console.print(table)
    if not found.fits:
        told = f"a micro-batch of {found.most} would" if found.most else "no micro-batch does"
        console.print(
            f"{told} fit: raise --grad_accum (contrast then sees fewer at once), or give --parallel fsdp or --activation_checkpointing True",
            highlight=False,
        )
