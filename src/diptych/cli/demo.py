"""diptych demo [--out DIR] [--seed S]: pre-trains a tiny VLMo on the built-in world, fine-tunes and scores it."""

from __future__ import annotations

from pathlib import Path

from diptych.cli.arguments import asks_help, take, whole
from diptych.cli.refusal import UsageError
from diptych.config.validation import Seed
from diptych.utils.terminal import echo


def demo_command(words: list[str]) -> None:
    if asks_help(words):
        echo(__doc__)
        return
    out, seed = Path(take(words, "--out", "demo")), take(words, "--seed", "0")
    if words:
        raise UsageError(f"demo takes --out DIR and --seed NUMBER, not {' '.join(words)}")
    number = whole(seed, "--seed", Seed)
    from diptych.runs.demo import demo

    demo(out, number)
