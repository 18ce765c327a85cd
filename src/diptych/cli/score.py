"""diptych score RUN PHOTOS TEXT | --texts FILE [--out FILE.jsonl] [--FIELD VALUE ...]

Scores how well texts match photographs, as JSON Lines.

Examples:
  diptych score runs/clip dog.jpg "a dog in the snow"
  diptych score runs/blip photos/ "a dog in the snow" --out scores.jsonl
  diptych score runs/clip photos/ --texts captions.txt --out scores.jsonl

  RUN              a run trained with itc, itm or triplet, or of diptych finetune retrieval, or a Hugging Face folder of
                   a CLIP, ViLT or BLIP for retrieval
  PHOTOS           files, folders (with their subfolders) and globs
  TEXT             the last argument, in quotes. Several texts: --texts FILE, one a line
  --out FILE       one row for each photograph and text: {"image": path, "text": text, "itc": number, "itm": number}.
                   "itc" is the cosine of their embeddings (of VSE++ and SCAN their own similarity), "itm" the
                   probability that they match (of a finetune retrieval run its ranking score); a model has one or
                   both. For a file that is no readable image "error" in their place. Without --out the rows are printed

The same command, given again, adds the photographs that have no rows yet, after an interruption or when the folder has
new ones, and tries those again whose rows have an error. The rows are then in the order of the photographs. Rows of
another model or of other texts are refused.
"""

from __future__ import annotations

from diptych.cli.arguments import apply_overrides, pop_words, show_help, wants_help
from diptych.cli.photos import pop_run_and_images, pop_text, print_summary
from diptych.config.predict import ScoreTexts


def score_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        return show_help(ScoreTexts(), "score RUN PHOTOS TEXT", __doc__)
    words = pop_words(args)
    config = apply_overrides(ScoreTexts(), args, "score")
    text = "" if config.texts else pop_text(words, "text", "score RUN PHOTOS TEXT, or --texts FILE")
    run, images = pop_run_and_images(words, "score RUN PHOTOS TEXT")
    from diptych.predict.photos import score_texts

    print_summary(score_texts(run, images, [text], config), config.out)
