"""diptych evaluate DIR [--task TASK] [--data DATA] [--split SPLIT] [--FIELD VALUE ...]

Evaluates a run and prints its metrics.

Examples:
  diptych evaluate runs/clip --task retrieval --data flickr8k/ --split val
  diptych evaluate runs/blip --task captioning --data flickr8k/ --split val --num_beams 3
  diptych evaluate runs/vqa
  diptych evaluate runs/clip --task retrieval --data flickr8k/ --shuffle_captions True

  DIR              the run folder. The results go to a folder in it (metrics.json, predictions.jsonl, skipped.json),
                   and its report.html is regenerated
  --task, --data   default: the task and data that the run was trained on
  --split SPLIT    default: val
  --gallery N      only the first N images; recall depends on the gallery's size, which is printed beside it
  --captions N     only the first N captions of each image
  --rerank K       retrieval: re-rank the top K of contrastive retrieval by ITM, if the model has an ITM head; 0: off
  --rerank_by HOW  the score to re-rank by: itm (ITM), sum (ITM + cosine) or product (ITM x contrastive
                   probability)
  --shuffle_captions True  control: captions are shuffled between images, so every score must fall to chance
"""

from __future__ import annotations

from pathlib import Path

from diptych.cli.arguments import apply_overrides, pop_positional, show_help, wants_help
from diptych.config.run import Evaluation
from diptych.runs.check_inputs import check_data, check_run_folder, data_of
from diptych.utils.terminal import echo


def evaluate_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        return show_help(Evaluation(), "evaluate DIR", __doc__)
    folder = Path(pop_positional(args, "the run folder", "diptych evaluate DIR"))
    evaluation = apply_overrides(Evaluation(), args, "evaluate DIR", top_level=frozenset())
    check_run_folder(folder)
    check_data(evaluation.data or data_of(folder))
    from diptych.runs.evaluate import evaluate

    metrics = evaluate(folder, evaluation)
    width = max([32, *map(len, metrics)])
    for name, value in metrics.items():
        echo(f"{name:{width}} {value:.4g}")
    if (folder / "report.html").is_file():
        echo(f"{folder}/report.html")
