"""diptych evaluate DIR [--task retrieval|captioning|vqa|matching] [--data DATA] [--split SPLIT] [--gallery N] [--shuffle_captions True]

Writes metrics.json, predictions.jsonl and skipped.json into a folder of its own in DIR, and DIR's report anew.
--task and --data: the run's own where they are not given. --split: val, unless another is given.
--gallery N: the first N images only; the gallery's size stands beside every recall. --captions N: of each image.
--rerank K: retrieval by contrast matches the best K again, where the run can (0: none), and ranks them by what
--rerank_by says: match, match + cosine, or the product with contrast's probability. --num_beams N: captioning.
--shuffle_captions True: captions are dealt to other images, and every score must fall to chance.
"""

from __future__ import annotations

from pathlib import Path

from diptych.cli.arguments import asks_help, overridden, positional, show_help
from diptych.config.run import Evaluation
from diptych.runs.validate import check_data, check_run_folder, data_of
from diptych.utils.terminal import echo


def evaluate_command(words: list[str]) -> None:
    if asks_help(words) or not words:
        return show_help(Evaluation(), "evaluate DIR", __doc__)
    folder = Path(positional(words, "the run's folder"))
    asked = overridden(Evaluation(), words, "evaluate DIR", top=frozenset())
    check_run_folder(folder)
    check_data(asked.data or data_of(folder))
    from diptych.runs.evaluate import evaluate

    metrics = evaluate(folder, asked)
    width = max([32, *map(len, metrics)])
    for name, value in metrics.items():
        echo(f"{name:{width}} {value:.4g}")
    if (folder / "report.html").is_file():
        echo(f"{folder}/report.html")
