"""diptych finetune TASK (--from RUN | --recipe RECIPE) --data DATA --out DIR [--FIELD VALUE ...]

Fine-tunes a run on a task. The same command, given again, continues an interrupted run.

Examples:
  diptych finetune vqa --from runs/vilt --data daquar/ --out runs/vqa
  diptych finetune vqa --recipe vilt.small --data daquar/ --out runs/vqa-untrained
  diptych finetune classification --from runs/vit --data cifar100/ --steps 500 --out runs/cifar
  diptych finetune albef.vqa --from runs/albef --data vqa/ --out runs/albef-vqa
  diptych finetune vqa --from runs/vilt --data daquar/ --ablate image --out runs/vqa-text-only
  diptych finetune vqa --from runs/vilt --data table.csv --columns image=file,question=text --out runs/own

  TASK             one of the tasks below, with settings for a small machine; or a system's own recipe, with the
                   settings of its paper, for models of that system
  --from RUN       the pre-trained run (the setting init_from)
  --recipe RECIPE  without --from, an untrained model: the baseline that pre-training must beat. A system's own recipe
                   for the task may be named here too
  --ablate PART    vqa, grounding: hide the image or the text of every sample: the baselines that a model must beat
  --out DIR        the run folder
"""

from __future__ import annotations

from pathlib import Path

from diptych.cli.arguments import (
    apply_overrides,
    list_recipes,
    list_tasks,
    pop_folder,
    pop_option,
    pop_positional,
    show_help,
    wants_help,
)
from diptych.cli.errors import UsageError
from diptych.config.spelling import bare, suggest_name
from diptych.config.tasks import FINETUNED, check_options_of_task
from diptych.inference.saved_model import check_saved
from diptych.runs.check_inputs import check_data
from diptych.runs.recipes import finetuning_recipe, recipes
from diptych.utils.terminal import echo


def finetune_command(args: list[str]) -> None:
    if wants_help(args[:1]) or not args:
        own_recipes = f"Systems' own recipes:\n{list_recipes('Finetune')}"
        echo(f"{__doc__}\nTasks:\n{list_tasks(FINETUNED)}\n\n{own_recipes}\n")
        echo("diptych finetune TASK --help lists every option.")
        return
    name = pop_positional(args, "the task", f"expected {', '.join(FINETUNED)} or a system's own recipe")
    system_recipes = recipes("Finetune")
    of_system = name in system_recipes
    if not of_system and name not in FINETUNED:
        suggestion = suggest_name(name, [*FINETUNED, *system_recipes], 3)
        raise UsageError(f"there is no task or recipe {name!r}{suggestion} (diptych finetune --help lists all)")
    if wants_help(args):
        return show_help(
            finetuning_recipe(name), f"finetune {name} --from RUN --data DATA --out DIR", __doc__, ("task", "init_from")
        )
    start = pop_option(args, "--from", "") or pop_option(args, "--init_from", "")
    untrained = pop_option(args, "--recipe", "")
    if not of_system and untrained in system_recipes:
        if (task := finetuning_recipe(untrained).task) != name:
            raise UsageError(f"--recipe {untrained} is for {task}, and the task is {name}")
        name, of_system, untrained = untrained, True, ""
    if of_system and untrained:
        raise UsageError(f"{name} has a model of its own: give --from RUN, a pre-trained run, or neither")
    if not of_system and bool(start) == bool(untrained):
        raise UsageError("give either --from RUN, a pre-trained run, or --recipe RECIPE, an untrained model")
    out = pop_folder(args)
    run = finetuning_recipe(name, untrained)
    check_options_of_task(run.task, [bare(word.partition("=")[0]) for word in args if word.startswith("--")])
    check_data(pop_option([*args], "--data", run.data))
    if start:
        check_saved(Path(start))
    from diptych.runs.finetune import finetune, inherited

    if start:
        run = inherited(Path(start), run, of_system)
    finetune(apply_overrides(run, args, f"finetune {name}", positionals=("task",)), out)
