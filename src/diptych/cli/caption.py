"""diptych caption RUN PHOTOS [--out FILE.jsonl] [--FIELD VALUE ...]

Writes a caption of each photograph, as JSON Lines.

Examples:
  diptych caption runs/blip dog.jpg
  diptych caption runs/blip photos/ --out captions.jsonl
  diptych caption runs/blip 'photos/**/*.jpg' more/ --prompt "a picture of" --out captions.jsonl
  diptych caption runs/blip photos/ --top_p 0.9 --num_captions 3 --out captions.jsonl

  RUN              a run trained to generate captions (objective lm or masked_captions), or a Hugging Face folder of a
                   BLIP for captioning
  PHOTOS           files, folders (with their subfolders) and globs
  --out FILE       one row for each photograph: {"image": path, "caption": text}; with --num_captions above 1
                   "captions", a list; for a file that is no readable image "error" in its place. Without --out the
                   rows are printed

The same command, given again, adds the photographs that have no row yet, after an interruption or when the folder has
new ones, and tries those again whose row has an error. The rows are then in the order of the photographs. Rows of
another model or of other options are refused. To compute a row again, remove it from the file.
"""

from __future__ import annotations

from diptych.cli.arguments import apply_overrides, pop_words, show_help, wants_help
from diptych.cli.photos import pop_run_and_images, print_summary
from diptych.config.predict import CaptionPhotos


def caption_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        return show_help(CaptionPhotos(), "caption RUN PHOTOS", __doc__)
    run, images = pop_run_and_images(pop_words(args), "caption RUN PHOTOS")
    config = apply_overrides(CaptionPhotos(), args, "caption")
    from diptych.predict.photos import caption_photos

    print_summary(caption_photos(run, images, config), config.out)
