"""diptych benchmark [--rows ROW,ROW] [--seeds S,S] [--data DATA] [--out DIR] [--minutes M] [--any_evaluation_field VALUE]

One table: what every system's small recipe learns from the same data, with every seed: its losses beside their floors,
matching, retrieval both ways, captions. Writes results.md, results.json and report.html into DIR, and a run's folder for
each row and seed. Started again it reads what is finished and goes on with what is not; what is not finished is told as
"not run". --rows: systems ("albef" is albef.small), recipes, or stages "vlmo.small_words+vlmo.small", each starting from
the one before; behind an @ a setting that is to be another: "albef,albef@objectives.mlm=0" tells what masked words are
worth. --minutes M: nothing is begun any more after so many (0: only the table).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from diptych.benchmark.rows import ROWS
from diptych.cli.arguments import asks_help, overridden, recipe, show_help, whole
from diptych.cli.refusal import UsageError
from diptych.config.run import Evaluation, Pretrain
from diptych.config.validation import CountOrNone, NumBeams, Range, Seed, Text, Workers, settings
from diptych.runs.validate import check_data
from diptych.utils.terminal import echo


@settings()
class Benchmark:
    """Which rows, with which seeds, on what, and how they are scored."""

    rows: str = ",".join(ROWS)
    seeds: str = "0,1"
    data: str = ""  # a folder, a file, tar shards, or the built-in world: scenes, scenes:2000
    out: Text = "benchmark"
    minutes: Annotated[float, Range(0, float("inf"))] = float("inf")
    device: Text = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gallery: CountOrNone = 0  # scoring: the first so many images; 0: all
    rerank: CountOrNone = Evaluation.rerank  # retrieval: how many of those that contrast finds best are matched
    rerank_by: Literal["match", "cosine", "product"] = Evaluation.rerank_by  # as for evaluate
    num_beams: NumBeams = Evaluation.num_beams
    workers: Workers = 2


def benchmark_command(words: list[str]) -> None:
    if asks_help(words):
        return show_help(Benchmark(), "benchmark", __doc__)
    asked = overridden(Benchmark(), words, "benchmark", top=frozenset())
    if not asked.data:
        raise UsageError("--data is missing: a folder of images with captions (the table is made for Flickr8k)")
    seeds = [whole(seed, "--seeds", Seed) for seed in asked.seeds.split(",")]
    rows = {name: tuple(_placed(stage, asked) for stage in name.split("+")) for name in asked.rows.split(",")}
    scoring = Evaluation(
        gallery=asked.gallery, rerank=asked.rerank, rerank_by=asked.rerank_by, num_beams=asked.num_beams, device=asked.device,
        precision=asked.precision, workers=asked.workers,
    )  # fmt: skip
    check_data(asked.data)
    from diptych.benchmark.run import benchmark

    out = Path(asked.out)
    echo(benchmark(rows, seeds, asked.data, out, asked.minutes, scoring))
    echo(out / "report.html")


def _placed(stage: str, asked: Benchmark) -> Pretrain:
    """The recipe of a stage with its settings, on the device that was asked for."""
    name, *settings = stage.split("@")
    run: Pretrain = recipe(name if "." in name else f"{name}.small")
    run = overridden(run, [f"--{setting}" for setting in settings], f"pretrain {run.recipe}")
    training = replace(run.training, device=asked.device, precision=asked.precision, workers=asked.workers)
    return replace(run, training=training)
