"""diptych demo [--out DIR] [--seed S]: pre-trains a tiny VLMo on the built-in world, fine-tunes and scores it."""

from __future__ import annotations

from pathlib import Path

from diptych.cli.arguments import asks_help, take
from diptych.cli.refusal import UsageError
from diptych.terminal import say


def demo_command(words: list[str]) -> None:
    if asks_help(words):
        say(__doc__)
        return
    out, seed = Path(take(words, "--out", "demo")), take(words, "--seed", "0")
    if words or not seed.isdecimal():
        raise UsageError(f"demo takes --out DIR and --seed NUMBER, not {' '.join(words) or seed}")
    from diptych.jobs.demo import demo

    demo(out, int(seed))
