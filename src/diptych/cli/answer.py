"""diptych answer RUN PHOTOS QUESTION [--candidates a,b] [--out FILE.jsonl] [--FIELD VALUE ...]

Answers a question about each photograph, as JSON Lines.

Examples:
  diptych answer runs/vqa dog.jpg "what is the dog doing?"
  diptych answer runs/vqa dog.jpg "is it raining?" --candidates yes,no
  diptych answer runs/vqa photos/ "how many people are there?" --out answers.jsonl

  RUN              a run of diptych finetune vqa, or a Hugging Face folder of a ViLT or BLIP for VQA
  PHOTOS           files, folders (with their subfolders) and globs
  QUESTION         the last argument, in quotes
  --candidates A   the possible answers, between commas, or a file with one a line. A model that classifies takes those
                   among its own answers; a model with an answer decoder takes any
  --out FILE       one row for each photograph: {"image": path, "question": text, "answer": text, "probability": p};
                   for a file that is no readable image "error" in place of the answer. Without --out the rows are
                   printed

The same command, given again, adds the photographs that have no row yet, after an interruption or when the folder has
new ones, and tries those again whose row has an error. The rows are then in the order of the photographs. Rows of
another model, question or candidates are refused.
"""

from __future__ import annotations

from diptych.cli.arguments import apply_overrides, pop_words, show_help, wants_help
from diptych.cli.photos import pop_run_and_images, pop_text, print_summary
from diptych.config.predict import AnswerQuestion


def answer_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        return show_help(AnswerQuestion(), "answer RUN PHOTOS QUESTION", __doc__)
    words = pop_words(args)
    question = pop_text(words, "question", "answer RUN PHOTOS QUESTION")
    run, images = pop_run_and_images(words, "answer RUN PHOTOS QUESTION")
    config = apply_overrides(AnswerQuestion(), args, "answer")
    from diptych.predict.photos import answer_question

    print_summary(answer_question(run, images, question, config), config.out)
