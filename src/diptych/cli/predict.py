"""diptych predict RUN PHOTOS [TEXT] [--out FILE.jsonl] [--FIELD VALUE ...]

Runs the task that a model was fine-tuned for on photographs, and writes its outputs as JSON Lines.

Examples:
  diptych predict runs/cifar photos/ --out classes.jsonl
  diptych predict runs/vqa dog.jpg "what is the dog doing?"

  RUN              a run of diptych finetune, or an imported model for a task
  PHOTOS           files, folders (with their subfolders) and globs
  TEXT             the last argument, in quotes, if the task has texts: a question of vqa, a text of retrieval, a
                   phrase of grounding
  --out FILE       one row for each photograph: {"image": path, the text if there is one, and the task's outputs}:
                   of classification "class", "probability" and "probable"; of vqa "answer" and "probability"; of
                   retrieval "score"; of grounding "box" (x1, y1, x2, y2 in pixels), "probability" and "probable". For
                   a file that is no readable image "error" in their place. Without --out the rows are printed

The same command, given again, adds the photographs that have no row yet: after an interruption, or when the folder has
new ones. Rows of another model or of another text are refused.
"""

from __future__ import annotations

from pathlib import Path

from diptych.cli.arguments import apply_overrides, pop_words, show_help, wants_help
from diptych.cli.photos import pop_run_and_images, pop_text, print_summary
from diptych.config.predict import PredictTask
from diptych.config.tasks import EVALUATIONS, Evaluation
from diptych.inference.saved_model import read_config

USAGE = "predict RUN PHOTOS [TEXT]"


def predict_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        return show_help(PredictTask(), USAGE, __doc__)
    words = pop_words(args)
    config = apply_overrides(PredictTask(), args, "predict")
    pop_run_and_images([*words], USAGE)  # of a copy: missing arguments are reported before the run is read
    name = EVALUATIONS.get(read_config(Path(words[0])).task, Evaluation).text
    text = pop_text(words, name, f"predict RUN PHOTOS {name.upper()}") if name else None
    run, images = pop_run_and_images(words, USAGE)
    from diptych.predict.photos import predict_task

    print_summary(predict_task(run, images, text, config), config.out)
