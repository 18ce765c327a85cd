"""diptych finetune TASK (--from DIR | --recipe RECIPE) --data DATA --out DIR2 [--steps N] [--any.field VALUE]

TASK is vqa or retrieval. With --recipe the model begins untrained: the baseline that pre-training must beat.
"""

from __future__ import annotations

from pathlib import Path

from diptych.cli.arguments import folder, overridden, positional, recipe, take
from diptych.cli.refusal import UsageError


def finetune_command(words: list[str]) -> None:
    if words[:1] in ([], ["-h"], ["--help"]):
        print(__doc__)
        return
    from diptych.recipes import finetune as tasks

    known = {"vqa": tasks.vqa, "retrieval": tasks.retrieval}
    name = positional(words, "the task")
    if name not in known:
        raise UsageError(f"there is no task {name!r}; there are: {', '.join(known)}")
    if {"-h", "--help"} & set(words):
        overridden(known[name](recipe("vilt.small")), ["--help"], f"finetune {name}")
    before, from_recipe = take(words, "--from", ""), take(words, "--recipe", "")
    if bool(before) == bool(from_recipe):
        raise UsageError("give either --from DIR, a pre-trained run, or --recipe RECIPE, an untrained model")
    out = folder(words)
    run = known[name](recipe(from_recipe or "vilt.small"))
    from diptych.jobs.finetune import finetune, inherited

    if before:
        run = inherited(Path(before), run)
    finetune(overridden(run, words, f"finetune {name}"), out)
    print(f"{out}: model.safetensors, metrics.jsonl, report.html")
