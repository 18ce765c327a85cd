"""diptych evaluate DIR --task retrieval|vqa|matching --data DATA --split SPLIT [--gallery N] [--captions N] [--control True]"""

from __future__ import annotations

from pathlib import Path

from diptych.cli.arguments import overridden, positional
from diptych.recipes.run import Evaluation


def evaluate_command(words: list[str]) -> None:
    if words[:1] in ([], ["-h"], ["--help"]):
        print(f"{__doc__}\n\ndiptych evaluate DIR --help lists every option.")
        return
    folder = Path(positional(words, "the run's folder"))
    asked = overridden(Evaluation(), words, "evaluate DIR", top=frozenset())
    from diptych.jobs.evaluate import evaluate

    for name, value in evaluate(folder, asked).items():
        print(f"{name:32} {value:.4g}")
    print(f"{folder}/report.html")
