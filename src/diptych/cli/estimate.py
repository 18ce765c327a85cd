"""diptych estimate RECIPE --gpus 8xA100 [--utilisation 0.6] [--data DATA] [--batch_size N] [--FIELD VALUE ...]

Estimates a run before it starts: tokens, FLOPs, memory on each rank, hours, and the bottleneck. The operations of a
training step on a few samples are counted, without computing them, so give the data of the run if you have it. How fast
data load is measured here.

Examples:
  diptych estimate albef.pretrain_4m --gpus 8xA100
  diptych estimate vilt.base --gpus H100 --batch_size 1024 --grad_accum 4
  diptych estimate vilt.small --gpus cpu:2 --data flickr8k/

  --gpus GPUS        number and model, as 8xA100 or L4; cpu:2 is this machine's CPU with two threads, measured here
  --utilisation U    share of their peak that the GPUs reach in matrix products
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from diptych.cli.arguments import (
    apply_overrides,
    list_recipes,
    pop_option,
    pop_positional,
    wants_help,
)
from diptych.cli.errors import UsageError
from diptych.planning.accelerators import ACCELERATORS, parse_gpus
from diptych.runs.recipes import recipe
from diptych.utils.terminal import echo

if TYPE_CHECKING:
    from diptych.config.run import Pretrain
    from diptych.planning.estimate import Estimate


def estimate_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        echo(f"{__doc__}\nGPUs: {', '.join(ACCELERATORS)}, cpu\n\nRecipes:\n{list_recipes()}")
        return
    name = pop_positional(args, "the recipe", "diptych estimate --help lists them")
    gpus, share = pop_option(args, "--gpus"), pop_option(args, "--utilisation", "0.6")
    parse_gpus(gpus)
    try:
        utilisation = float(share)
    except ValueError:
        raise UsageError(f"--utilisation must be a number in (0, 1]: got {share!r}") from None
    run: Pretrain = apply_overrides(recipe(name), args, f"estimate {name}")

    from diptych.planning.estimate import estimate

    console = Console(soft_wrap=True)
    console.print(f"{name}: counting the operations of a step ...", highlight=False)
    result = estimate(run, gpus, utilisation)
    console.print(f"{name} on {result.ranks} x {result.device.name} ({result.device.source})", highlight=False)
    console.print(_table(run, result, utilisation))
    if not result.fits:
        most = result.max_micro_batch
        fitting = f"a micro-batch of {most} fits" if most else "not even a micro-batch of 1 fits"
        advice = "raise --grad_accum (contrastive losses then compare fewer samples), or give --parallel fsdp"
        console.print(f"{fitting}: {advice} or --activation_checkpointing True", highlight=False)


def _table(run: Pretrain, result: Estimate, utilisation: float) -> Table:
    profile, device = result.profile, result.device
    steps, batch = result.training.steps, run.training.batch_size
    epochs = f" ({steps * batch / profile.num_examples:,.3g} epochs)" if profile.num_examples else ""
    tokens = profile.text_tokens + profile.image_tokens
    peak = device.bf16_flops if result.bf16 else device.fp32_flops
    memory = sum(result.memory.values())
    rows = {
        "parameters, trained and all": f"{profile.trained / 1e6:,.1f} M, {profile.parameters / 1e6:,.1f} M",
        "tokens of a sample, text + image": f"{profile.text_tokens:.0f} + {profile.image_tokens:.0f}",
        f"tokens of the run, {steps:,} steps of {batch:,}{epochs}": f"{tokens * steps * batch:.3g}",
        "FLOPs of a step, and of the run": f"{result.flops:.3g}, {result.flops * steps:.3g}",
    }
    rows |= {f"memory of a rank: {name}": f"{size / 1e9:,.2f} GB" for name, size in result.memory.items()}
    total = f"memory of a rank, micro-batch {result.micro_batch}"
    rows[total] = f"{memory / 1e9:,.2f} of {device.memory / 1e9:,.0f} GB"
    rows |= {f"a step: {name}": f"{seconds * 1e3:,.1f} ms" for name, seconds in result.seconds.items()}
    rows |= {
        f"a step, at {utilisation:.0%} of the peak in products": f"{result.step * 1e3:,.1f} ms",
        "share of the peak overall": f"{result.flops / result.ranks / result.step / peak:.0%}",
        "hours": f"{result.hours:,.2f}",
        "bottleneck": result.bound if result.fits else "memory: it does not fit",
    }
    table = Table("quantity", "estimate", show_header=False)
    table.columns[1].justify = "right"
    for name, value in rows.items():
        table.add_row(name, value)
    return table
