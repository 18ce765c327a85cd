"""diptych evaluate DIR [--task TASK] [--data DATA] [--split SPLIT] [--FIELD VALUE ...]

Evaluates a run and prints its metrics.

Examples:
  diptych evaluate runs/clip --task retrieval --data flickr8k/ --split val
  diptych evaluate runs/blip --task captioning --data flickr8k/ --split val --num_beams 3
  diptych evaluate runs/vqa
  diptych evaluate runs/clip --task retrieval --data flickr8k/ --shuffle_captions True

  DIR              the run folder. The results go to a folder in it (metrics.json, predictions.jsonl, skipped.json),
                   and its report.html is regenerated
  --task TASK      one of the tasks below; default: the task that the run was trained on (of pre-training: matching)
  --data DATA      default: the data that the run was trained on; needed for an imported model
  --split SPLIT    default: val
  --gallery N      retrieval, captioning, matching: only the first N images; recall depends on the gallery's size, which
                   is printed beside it
  --captions N     only the first N captions of each image
  --rerank K       retrieval: re-rank the top K of contrastive retrieval by ITM, if the model has an ITM head; 0: off
  --rerank_by HOW  the score to re-rank by: itm (ITM), sum (ITM + cosine) or product (ITM x contrastive
                   probability)
  --num_beams N    captioning: beam size
  --ablate PART    vqa, grounding: hide the image or the text of every sample
  --proposals true  grounding: the true boxes of each image are the regions, in place of those that the model reads
  --shuffle_captions True  control: captions are shuffled between images, so every score must fall to chance

Scores are printed with 95 % intervals, for which the photographs are resampled. An evaluation that was interrupted
continues with the same command; torchrun -m diptych evaluate … divides it over several processes or GPUs.

A setting that is given and has no effect on this model, as --rerank without an ITM head, is named in one line.

diptych evaluate --task TASK --help lists all options of a task.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diptych.cli.arguments import apply_overrides, list_tasks, pop_option, pop_positional, show_help, wants_help
from diptych.cli.errors import UsageError
from diptych.config.spelling import bare, suggest_name
from diptych.config.tasks import EVALUATIONS, Evaluation, check_settings_of_task, evaluation_of
from diptych.inference.saved_model import check_saved
from diptych.runs.check_inputs import check_data, needed_data, task_of
from diptych.utils.terminal import echo

if TYPE_CHECKING:
    from diptych.metrics.bootstrap import Scores


def evaluate_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        task = pop_option(args, "--task", "")
        description = f"{__doc__}\nTasks:\n{list_tasks(EVALUATIONS)}\n"
        return show_help(
            evaluation_of(task) if task else Evaluation(), f"evaluate DIR --task {task or 'TASK'}", description
        )
    folder = Path(pop_positional(args, "the run folder", "diptych evaluate DIR"))
    task = pop_option(args, "--task", "")
    if not task:
        task = task_of(folder)
    elif task not in EVALUATIONS:
        raise UsageError(
            f"--task: expected one of {', '.join(EVALUATIONS)}, got {task!r}{suggest_name(task, EVALUATIONS)}"
        )
    explicit = [bare(word.partition("=")[0]) for word in args if word.startswith("--")]
    check_settings_of_task(task, explicit, "--")
    evaluation = apply_overrides(evaluation_of(task), args, f"evaluate DIR --task {task}")
    check_saved(folder)
    check_data(evaluation.data or needed_data(folder), evaluation.layout)
    from diptych.runs.evaluate import evaluate
    from diptych.training.distributed import is_main_rank

    scores = evaluate(folder, evaluation, explicit)
    if is_main_rank():
        print_scores(scores)
        if (folder / "report.html").is_file():
            echo(f"{folder}/report.html")


def print_scores(scores: Scores) -> None:
    """Prints each metric, with its interval if it has one, and how the intervals were computed."""
    from diptych.metrics.bootstrap import interval

    width = max([32, *map(len, scores)])
    for name, value in scores.items():
        ends = scores.intervals.get(name)
        echo(f"{name:{width}} {value:<9.4g} {'' if ends is None else interval(ends)}".rstrip())
    if scores.resampling:
        echo(scores.resampling)
