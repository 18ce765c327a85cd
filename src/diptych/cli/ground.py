"""diptych ground RUN PHOTO PHRASE [PHRASE ...] [--out FILE.png] [--map True] [--FIELD VALUE ...]

Finds the box in a photograph that a phrase refers to, for each phrase.

Examples:
  diptych ground runs/grounding dog.jpg "the dog on the left"
  diptych ground runs/albef dog.jpg "a dog" "a red ball" --out boxed.png --map True

  RUN              a run of diptych finetune grounding: the most probable region. Or a run trained with itm or itc, or
                   an imported ALBEF, BLIP or CLIP: the best box by the phrase's map (Grad-CAM of attention, ALBEF);
                   of a model of regions among these, of others among fixed boxes
  PHOTO            one photograph
  PHRASE           in quotes; several give a box each
  --out FILE.png   a picture for each phrase: the photograph with the box, its score and the phrase. A file that this
                   command did not write is never replaced. Without --out one row of JSON is printed for each phrase:
                   {"image": path, "phrase": text, "box": [x1, y1, x2, y2], "score": number, "method": "head" or
                   "gradcam"}; the box is in pixels of the upright photograph, the score of "head" a probability
  --map True       the map of the phrase over the photograph, for a run without a grounding head
"""

from __future__ import annotations

import os

from diptych.cli.arguments import apply_overrides, pop_words, show_help, wants_help
from diptych.cli.errors import UsageError
from diptych.config.predict import GroundPhrases
from diptych.utils.terminal import echo

USAGE = "ground RUN PHOTO PHRASE"


def ground_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        return show_help(GroundPhrases(), f"{USAGE} [PHRASE ...]", __doc__)
    words = pop_words(args)
    run, photo, phrases = _words(words)
    config = apply_overrides(GroundPhrases(), args, "ground")
    if config.map and not config.out:
        raise UsageError("--map is drawn into a picture: give --out, a file .png")
    from diptych.predict.grounding import ground_phrases
    from diptych.predict.rows import to_line

    rows = ground_phrases(run, photo, phrases, config)
    if config.out:
        echo(f"{config.out}: {len(rows)} phrase{'s' * (len(rows) != 1)}")
        return
    for row in rows:
        echo(to_line(row))


def _words(words: list[str]) -> tuple[str, str, list[str]]:
    """The run, the photograph and the phrases. Raises UsageError if one is missing or empty, or a phrase is a path."""
    for number, name in enumerate(("run", "photograph", "phrase")):
        if len(words) <= number:
            raise UsageError(f"no {name} given: diptych {USAGE}")
    run, photo, *phrases = words
    if not all(word.strip() for word in words):
        raise UsageError(f"an argument is empty (an unset variable of the shell?): diptych {USAGE}")
    for phrase in phrases:
        if os.path.exists(phrase):
            raise UsageError(f"{phrase!r} is a file or folder, where a phrase was expected: diptych {USAGE}")
    return run, photo, phrases
