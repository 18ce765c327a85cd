"""diptych baselines --task vqa|retrieval|matching --data DATA [--split SPLIT] [--gallery N] [--captions N] [--out FILE]

What can be reached without looking, which a model must beat; it needs no run. vqa: the most common answer of the train
split, that of the question's kind where kinds are told, and that of the same question, else of the same first two words.
retrieval, matching: chance, and the floors of the losses. --gallery N, --captions N: as for evaluate.
Nothing is written, unless --out FILE asks for JSON.
"""

from __future__ import annotations

from typing import Literal

from diptych.cli.arguments import asks_help, overridden, show_help
from diptych.config.run import Evaluation
from diptych.config.validation import CountOrNone, Text, settings


@settings()
class Baselines:
    """What to guess, and of which data."""

    task: Literal["vqa", "retrieval", "matching"] = "vqa"
    data: Text = "scenes"  # a folder, a file, tar shards, or the built-in world: scenes, scenes:2000
    split: Text = "val"
    gallery: CountOrNone = 0  # retrieval, matching: the first so many images; 0: all
    captions: CountOrNone = 0  # retrieval, matching: the first so many of each image; 0: all
    out: str = ""  # a JSON file to write; empty: none


def baselines_command(words: list[str]) -> None:
    if asks_help(words) or not words:
        return show_help(Baselines(), "baselines", __doc__)
    asked = overridden(Baselines(), words, "baselines", top=frozenset())
    from diptych.runs.baselines import baselines

    found = baselines(Evaluation(asked.task, asked.data, asked.split, asked.gallery, asked.captions))
    _show(f"{asked.task} without looking: {asked.data}, split {asked.split}", found)
    if asked.out:
        _write(asked, found)


def _show(title: str, found: dict[str, dict[str, float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from diptych.utils.terminal import plain

    table = Table("measure", title=plain(title), title_justify="left")
    for way in found:
        table.add_column(way, justify="right")
    for measure in next(iter(found.values())):
        table.add_row(measure, *(f"{scores[measure]:.4g}" for scores in found.values()))
    Console(soft_wrap=True).print(table)


def _write(asked: Baselines, found: dict[str, dict[str, float]]) -> None:
    import json
    from dataclasses import asdict
    from pathlib import Path

    from diptych.utils.io import atomic_write

    with atomic_write(Path(asked.out)) as path:
        path.write_text(json.dumps({"asked": asdict(asked), "baselines": found}, indent=1))
