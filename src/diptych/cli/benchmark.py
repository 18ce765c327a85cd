"""diptych benchmark --data DATA [--out DIR] [--rows ROW,ROW] [--seeds S,S] [--minutes M] [--FIELD VALUE ...]

Trains and evaluates the small recipe of every system on the same data, with every seed, and writes one table: losses
beside their chance levels, matching, retrieval in both directions, captioning. The same command, given again, reads
what is finished and continues with the rest.

Examples:
  diptych benchmark --data flickr8k/ --out benchmark
  diptych benchmark --data flickr8k/ --rows clip,albef,vlmo.small_text+vlmo.small --seeds 0 --minutes 60
  diptych benchmark --data flickr8k/ --rows albef,albef@objectives.mlm=none    (the contribution of MLM)

  --rows ROW,ROW   a system (albef: albef.small), a recipe, or stages joined by +, each initialised from the one before;
                   after an @ a setting to change
  --out DIR        gets results.md, results.json, report.html, and a run folder for each row and seed
  --minutes M      start no further run after M minutes; 0: only write the table. Unfinished rows read "not run"
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from diptych.benchmark.rows import ROWS
from diptych.cli.arguments import apply_overrides, parse_int, show_help, wants_help
from diptych.cli.errors import UsageError
from diptych.config import tasks
from diptych.config.data import DataSettings
from diptych.config.run import Pretrain
from diptych.config.validation import CountOrZero, NumBeams, Range, Seed, Text, Workers, settings
from diptych.runs.check_inputs import check_data
from diptych.runs.recipes import recipe
from diptych.utils.terminal import echo


@settings()
class Benchmark(DataSettings):
    """The rows and seeds to train, the data, and how to evaluate."""

    rows: str = ",".join(ROWS)
    seeds: str = "0,1"
    data: str = ""  # a folder, a file, tar shards, or synthetic data: scenes, scenes:2000
    out: Text = "benchmark"
    minutes: Annotated[float, Range(0, float("inf"))] = float("inf")
    device: Text = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gallery: CountOrZero = 0  # evaluation: only the first N images; 0: all
    rerank: CountOrZero = tasks.Retrieval.rerank  # retrieval: re-rank the top K of contrastive retrieval by ITM; 0: off
    rerank_by: tasks.RerankBy = tasks.Retrieval.rerank_by  # as for evaluate
    num_beams: NumBeams = tasks.Captioning.num_beams
    workers: Workers = 2


SHARED = ("gallery", "device", "precision", "workers", "columns", "images_root")
"""Settings of every evaluation."""


def benchmark_command(args: list[str]) -> None:
    if wants_help(args):
        return show_help(Benchmark(), "benchmark", __doc__)
    config = apply_overrides(Benchmark(), args, "benchmark")
    if not config.data:
        raise UsageError("--data is missing: a folder of images with captions (the table is made for Flickr8k)")
    seeds = [parse_int(seed, "--seeds", Seed) for seed in config.seeds.split(",")]
    rows = {name: tuple(_stage(stage, config) for stage in name.split("+")) for name in config.rows.split(",")}
    shared = {name: getattr(config, name) for name in SHARED}
    evaluations = {
        "retrieval": tasks.Retrieval(rerank=config.rerank, rerank_by=config.rerank_by, **shared),
        "matching": tasks.Matching(**shared),
        "captioning": tasks.Captioning(num_beams=config.num_beams, **shared),
    }
    check_data(config.data, config.layout)
    from diptych.benchmark.run import benchmark

    out = Path(config.out)
    echo(benchmark(rows, seeds, config.data, out, config.minutes, evaluations))
    echo(out / "report.html")


def _stage(text: str, config: Benchmark) -> Pretrain:
    """The run of ``RECIPE@FIELD=VALUE@…`` with the benchmark's device, precision and workers."""
    name, *overrides = text.split("@")
    run: Pretrain = recipe(name if "." in name else f"{name}.small")
    run = apply_overrides(run, [f"--{override}" for override in overrides], f"pretrain {run.recipe}")
    training = replace(run.training, device=config.device, precision=config.precision, workers=config.workers)
    return replace(run, training=training, columns=config.columns, images_root=config.images_root)
