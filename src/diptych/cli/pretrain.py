"""diptych pretrain RECIPE --data DATA --out DIR [--steps N] [--seed S] [--device D] [--precision P] [--any.field VALUE]"""

from __future__ import annotations

from diptych.cli.arguments import folder, overridden, positional, recipe, recipes


def pretrain_command(words: list[str]) -> None:
    if words[:1] in ([], ["-h"], ["--help"]):
        print(f"{__doc__}\n\nrecipes: {', '.join(recipes())}\n\ndiptych pretrain RECIPE --help lists every field.")
        return
    name = positional(words, "the recipe (diptych pretrain --help lists them)")
    run = recipe(name)
    if {"-h", "--help"} & set(words):
        overridden(run, ["--help"], f"pretrain {name}")
    out = folder(words)
    run = overridden(run, words, f"pretrain {name}")

    from diptych.jobs.pretrain import pretrain

    pretrain(run, out)
    print(f"{out}: model.safetensors, metrics.jsonl, report.html")
