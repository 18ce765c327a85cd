"""diptych finetune TASK (--from DIR | --recipe RECIPE) --data DATA --out DIR2 [--steps N] [--any.field VALUE]

TASK is vqa, retrieval or classification (of --data with CIFAR-100's files), at a size that fits a small machine; or a
system's own recipe, with the settings of its paper, on a model of that system: diptych finetune --help lists them.
With --recipe, or with a system's own recipe alone, the model begins untrained: the baseline that pre-training must beat.
With --ablate image or --ablate text (vqa) a part of every question is hidden: the baselines that seeing must beat.
The same command started again continues where DIR2 stands. diptych finetune TASK --help lists every field.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diptych.cli.arguments import asks_help, folder, overridden, positional, recipe, recipes, show_help, take
from diptych.cli.refusal import UsageError
from diptych.cli.suggestions import nearest
from diptych.config.run import Finetune
from diptych.runs.validate import check_data, check_run_folder
from diptych.utils.terminal import echo

EXAMPLES = {"vqa": "vilt.small", "retrieval": "vilt.small", "classification": "vit.base"}
"""The tasks of any model, each with a recipe that can learn it."""


def finetune_command(words: list[str]) -> None:
    if asks_help(words[:1]) or not words:
        echo(f"{__doc__}\nsystems' own: {', '.join(recipes('Finetune'))}")
        return
    name = positional(words, f"the task ({', '.join(EXAMPLES)})")
    own = name in (of_systems := recipes("Finetune"))
    if not own and name not in EXAMPLES:
        known = [*EXAMPLES, *of_systems]
        raise UsageError(f"there is no task {name!r}{nearest(name, known, 3)} (diptych finetune --help lists all)")
    if asks_help(words):
        return show_help(_run(name, ""), f"finetune {name} --from DIR --data DATA --out DIR2", __doc__)
    before, from_recipe = take(words, "--from", ""), take(words, "--recipe", "")
    if own and from_recipe:
        raise UsageError(f"{name} has a model of its own: give --from DIR, a pre-trained run, or neither")
    if not own and bool(before) == bool(from_recipe):
        raise UsageError("give either --from DIR, a pre-trained run, or --recipe RECIPE, an untrained model")
    out = folder(words)
    run = _run(name, from_recipe)
    check_data(take([*words], "--data", run.data))
    if before:
        check_run_folder(Path(before))
    from diptych.runs.finetune import finetune, inherited

    if before:
        run = inherited(Path(before), run, own)
    finetune(overridden(run, words, f"finetune {name}"), out)


def _run(name: str, untrained: str) -> Finetune:
    """The task on the model of a recipe; a system's own on its own model."""
    if name not in EXAMPLES:
        return recipe(name, "Finetune")
    from diptych.models import common_recipes as tasks

    return replace(getattr(tasks, name)(recipe(untrained or EXAMPLES[name])), recipe=untrained)
