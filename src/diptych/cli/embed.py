"""diptych embed RUN PHOTOS | --texts FILE --out FILE.npz [--FIELD VALUE ...]

Writes the embedding of each photograph, or of each text: float32 vectors of unit length, so that a dot product is a
cosine.

Examples:
  diptych embed runs/clip photos/ --out photos.npz
  diptych embed runs/clip --texts queries.txt --out queries.npz

  RUN              a run trained with itc or triplet, or a Hugging Face folder of a CLIP or a BLIP for retrieval; for
                   photographs also a model of images only
  PHOTOS           files, folders (with their subfolders) and globs
  --texts FILE     one text a line, in place of photographs
  --out FILE       .npz: the array "vectors" (n, d) and their paths, "images" (or "texts"); .npy: the vectors alone;
                   .safetensors: the tensor "vectors". Beside it, FILE.jsonl has one row for each photograph or text:
                   {"image": path, "row": index of its vector}, or "error" for a file that is no readable image

The same command, given again, adds the photographs that have no vector yet, after an interruption or when the folder
has new ones, and tries those again whose row has an error. The rows are then in the order of the photographs; vectors
are added at the end. Vectors of another model are refused.
"""

from __future__ import annotations

from diptych.cli.arguments import apply_overrides, pop_words, show_help, wants_help
from diptych.cli.errors import UsageError
from diptych.cli.photos import pop_run_and_images, print_summary
from diptych.config.predict import Embed


def embed_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        return show_help(Embed(), "embed RUN PHOTOS --out FILE", __doc__)
    words = pop_words(args)
    config = apply_overrides(Embed(), args, "embed")
    if not config.out:
        raise UsageError("--out is missing: give a file .npz, .npy or .safetensors")
    run, images = pop_run_and_images(words, "embed RUN PHOTOS, or embed RUN --texts FILE", needed=not config.texts)
    if config.texts and images:
        raise UsageError(f"embed takes photographs or --texts, not both: remove {' '.join(images)}")
    from diptych.predict.photos import embed

    print_summary(embed(run, images, config), config.out, "text" if config.texts else "photograph")
