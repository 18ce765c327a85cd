"""diptych finetune TASK (--from DIR | --recipe RECIPE) --data DATA --out DIR2 [--steps N] [--any.field VALUE]

TASK is vqa or retrieval. With --recipe the model begins untrained: the baseline that pre-training must beat.
With --blind image or --blind text (vqa) a part of every question is hidden: the baselines that seeing must beat.
The same command started again continues where DIR2 stands. diptych finetune TASK --help lists every field.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diptych.cli.arguments import asks_help, folder, nearest, overridden, positional, recipe, show_help, take
from diptych.cli.refusal import UsageError


def finetune_command(words: list[str]) -> None:
    if asks_help(words[:1]) or not words:
        print(__doc__)
        return
    from diptych.recipes import finetune as tasks

    known = {"vqa": tasks.vqa, "retrieval": tasks.retrieval}
    name = positional(words, f"the task ({', '.join(known)})")
    if name not in known:
        raise UsageError(f"there is no task {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
    if asks_help(words):
        return show_help(
            known[name](recipe("vilt.small")), f"finetune {name} --from DIR --data DATA --out DIR2", __doc__
        )
    before, from_recipe = take(words, "--from", ""), take(words, "--recipe", "")
    if bool(before) == bool(from_recipe):
        raise UsageError("give either --from DIR, a pre-trained run, or --recipe RECIPE, an untrained model")
    out = folder(words)
    run = replace(known[name](recipe(from_recipe or "vilt.small")), recipe=from_recipe)
    from diptych.jobs.finetune import finetune, inherited

    if before:
        run = inherited(Path(before), run)
    finetune(overridden(run, words, f"finetune {name}"), out)
