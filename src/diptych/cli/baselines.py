"""diptych baselines --task TASK --data DATA [--split SPLIT] [--gallery N] [--captions N] [--out FILE]

Scores of guessing without looking at the images, which a model must beat. Needs no run.

Examples:
  diptych baselines --task vqa --data daquar/ --split val
  diptych baselines --task grounding --data refcoco+/ --split testA
  diptych baselines --task retrieval --data flickr8k/ --gallery 1000 --out chance.json

  --task vqa         the most common answer of the train split; that of the question's type, if the data has types;
                     and that of the same question, else of questions with the same first two words
  --task grounding   a random, the largest and the central region, and the best one, which bounds any choice: of 14 and
                     of 36 fixed boxes, and of the true boxes of the image
  --task retrieval, matching   chance, and the chance level of the losses
  --gallery N, --captions N    as for evaluate
  --out FILE         write JSON too; without it nothing is written
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diptych.cli.arguments import apply_overrides, show_help, wants_help
from diptych.cli.errors import UsageError
from diptych.config.tasks import evaluation_of
from diptych.config.validation import CountOrZero, Text, settings

if TYPE_CHECKING:
    from diptych.metrics.bootstrap import Scores


@settings()
class Baselines:
    """The task and data to guess on."""

    task: Literal["vqa", "retrieval", "grounding", "matching"] = "vqa"
    data: Text = "scenes"  # a folder, a file, tar shards, or synthetic data: scenes, scenes:2000
    split: Text = "val"
    gallery: CountOrZero = 0  # retrieval, matching: only the first N images; 0: all
    captions: CountOrZero = 0  # retrieval, matching: only the first N captions of each image; 0: all
    out: str = ""  # a JSON file to write; empty: none


def baselines_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        return show_help(Baselines(), "baselines", __doc__)
    config = apply_overrides(Baselines(), args, "baselines")
    from diptych.runs.baselines import baselines

    gallery = {name: value for name in ("gallery", "captions") if (value := getattr(config, name))}
    if gallery and config.task in ("vqa", "grounding"):
        raise UsageError(
            f"--{' and --'.join(gallery)} are for images with captions, and the task is {config.task}; leave them out"
        )
    scores = baselines(evaluation_of(config.task, data=config.data, split=config.split, **gallery))
    _print(f"{config.task} without looking: {config.data}, split {config.split}", scores)
    if config.out:
        _write(config, scores)


def _print(title: str, scores: dict[str, Scores]) -> None:
    """Prints a table: a row for each metric, a column for each way of guessing, with 95 % intervals in brackets."""
    from rich.console import Console
    from rich.table import Table

    from diptych.metrics.bootstrap import with_interval
    from diptych.utils.terminal import plain

    table = Table("metric", title=plain(title), title_justify="left")
    for guess in scores:
        table.add_column(guess, justify="right")
    for metric in next(iter(scores.values())):
        table.add_row(metric, *(plain(with_interval(metrics, metric)) for metrics in scores.values()))
    Console(soft_wrap=True).print(table)


def _write(config: Baselines, scores: dict[str, Scores]) -> None:
    import json
    from dataclasses import asdict
    from pathlib import Path

    from diptych.utils.io import atomic_write

    with atomic_write(Path(config.out)) as path:
        ends = {name: metrics.intervals for name, metrics in scores.items() if metrics.intervals}
        path.write_text(json.dumps({"settings": asdict(config), "baselines": scores, "intervals": ends}, indent=1))
