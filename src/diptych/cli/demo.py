"""diptych demo [--out DIR] [--seed S]

Pre-trains a tiny VLMo on synthetic scenes, fine-tunes it on VQA and evaluates it. Needs no data, and takes minutes on
a CPU.

Examples:
  diptych demo
  diptych demo --out runs/demo --seed 1
"""

from __future__ import annotations

from pathlib import Path

from diptych.cli.arguments import parse_int, pop_option, wants_help
from diptych.cli.errors import UsageError
from diptych.config.validation import Seed
from diptych.utils.terminal import echo


def demo_command(args: list[str]) -> None:
    if wants_help(args):
        echo(__doc__)
        return
    out, seed = Path(pop_option(args, "--out", "demo")), pop_option(args, "--seed", "0")
    if args:
        raise UsageError(f"demo takes --out DIR and --seed NUMBER, not {' '.join(args)}")
    number = parse_int(seed, "--seed", Seed)
    from diptych.runs.demo import demo

    demo(out, number)
