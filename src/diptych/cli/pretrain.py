"""diptych pretrain RECIPE --data DATA --out DIR [--steps N] [--seed S] [--device D] [--precision P] [--any.field VALUE]

--out DIR: the run's folder. The same command started again continues where it stands.
--data DATA: a folder of images with captions (Karpathy or COCO JSON, CSV, TSV, JSONL), tars "shards-{000..003}.tar", or scenes.
--init_from DIR: begin with the weights of another run.
"""

from __future__ import annotations

from diptych.cli.arguments import asks_help, folder, overridden, positional, recipe, recipes, show_help
from diptych.runs.validate import check_inputs
from diptych.utils.terminal import echo


def pretrain_command(words: list[str]) -> None:
    if asks_help(words[:1]) or not words:
        echo(f"{__doc__}\n\nrecipes: {', '.join(recipes())}\n\ndiptych pretrain RECIPE --help lists every field.")
        return
    name = positional(words, "the recipe (diptych pretrain --help lists them)")
    run = recipe(name)
    if asks_help(words):
        return show_help(run, f"pretrain {name} --data DATA --out DIR", __doc__)
    out = folder(words)
    run = overridden(run, words, f"pretrain {name}")
    check_inputs(run)

    from diptych.runs.pretrain import pretrain

    pretrain(run, out)
