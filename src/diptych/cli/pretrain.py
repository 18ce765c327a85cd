"""diptych pretrain RECIPE --data DATA --out DIR [--FIELD VALUE ...]

Pre-trains a model. The same command, given again, continues an interrupted run.

Examples:
  diptych pretrain vilt.tiny --data scenes:500 --steps 20 --out runs/first
  diptych pretrain vilt.small --data flickr8k/ --out runs/vilt
  diptych pretrain clip.small --data 'shards-{000..003}.tar' --batch_size 64 --optimizer.learning_rate 3e-4 \\
                   --out runs/clip
  diptych pretrain vilt.small --data flickr8k/ --init_from runs/words --out runs/pairs

  RECIPE           a system and a configuration, such as vilt.small; diptych pretrain --help lists them
  --data DATA      a folder of images with captions (Karpathy or COCO JSON, CSV, TSV, JSONL), tar shards,
                   or scenes: synthetic images and captions
  --out DIR        the run folder: weights, checkpoint, metrics and report
  --init_from DIR  initialise the weights from another run
"""

from __future__ import annotations

from diptych.cli.arguments import (
    apply_overrides,
    list_recipes,
    pop_folder,
    pop_positional,
    show_help,
    wants_help,
)
from diptych.runs.check_inputs import check_inputs
from diptych.runs.recipes import recipe
from diptych.utils.terminal import echo


def pretrain_command(args: list[str]) -> None:
    if wants_help(args[:1]) or not args:
        echo(f"{__doc__}\nRecipes:\n{list_recipes()}\n\ndiptych pretrain RECIPE --help lists every option.")
        return
    name = pop_positional(args, "the recipe", "diptych pretrain --help lists them")
    run = recipe(name)
    if wants_help(args):
        return show_help(run, f"pretrain {name} --data DATA --out DIR", __doc__)
    out = pop_folder(args)
    if not any(word.partition("=")[0] == "--data" for word in args):
        echo(f"no --data given: training on {run.data}, synthetic images and captions")
    run = apply_overrides(run, args, f"pretrain {name}")
    check_inputs(run)

    from diptych.runs.pretrain import pretrain

    pretrain(run, out)
