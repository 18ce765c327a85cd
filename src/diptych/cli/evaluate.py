"""diptych evaluate DIR [--task retrieval|captioning|vqa|matching] [--data DATA] [--split SPLIT] [--gallery N] [--control True]

Writes metrics.json, predictions.jsonl and skipped.json into a folder of its own in DIR, and DIR's report anew.
--task and --data: the run's own where they are not given. --split: val, unless another is given.
--gallery N: the first N images only; the gallery's size stands beside every recall. --captions N: of each image.
--candidates K: retrieval by contrast matches the best K again, where the run can (0: none), and ranks them by what
--ranked_by says: match, match + cosine, or the product with contrast's probability. --beams N: captioning.
--control True: captions are dealt to other images, and every score must fall to chance.
"""

from __future__ import annotations

from pathlib import Path

from diptych.cli.arguments import asks_help, overridden, positional, show_help
from diptych.config.run import Evaluation
from diptych.runs.validate import data_of, data_there, run_there
from diptych.utils.terminal import say


def evaluate_command(words: list[str]) -> None:
    if asks_help(words) or not words:
        return show_help(Evaluation(), "evaluate DIR", __doc__)
    folder = Path(positional(words, "the run's folder"))
    asked = overridden(Evaluation(), words, "evaluate DIR", top=frozenset())
    run_there(folder)
    data_there(asked.data or data_of(folder))
    from diptych.runs.evaluate import evaluate

    metrics = evaluate(folder, asked)
    width = max([32, *map(len, metrics)])
    for name, value in metrics.items():
        say(f"{name:{width}} {value:.4g}")
    if (folder / "report.html").is_file():
        say(f"{folder}/report.html")
