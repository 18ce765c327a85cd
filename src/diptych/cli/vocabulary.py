"""diptych vocabulary DATA --out FILE.txt [--size 8000] [--split train]

Learns the pieces that the captions of a split are best cut into (WordPiece, lower case), and writes them one a line, as BERT's
are. A run reads them with --vocabulary FILE.txt --model.vocabulary N, where N is how many there are.
"""

from __future__ import annotations

from pathlib import Path

from diptych.cli.arguments import asks_help, positional, take, whole
from diptych.cli.refusal import UsageError
from diptych.config.validation import Vocabulary
from diptych.runs.validate import data_there
from diptych.utils.terminal import say


def vocabulary_command(words: list[str]) -> None:
    if asks_help(words) or not words:
        say(__doc__)
        return
    data, out = positional(words, "the data"), Path(take(words, "--out"))
    size, split = take(words, "--size", "8000"), take(words, "--split", "train")
    if words:
        raise UsageError(f"vocabulary does not know {' '.join(words)}")
    pieces = whole(size, "--size", Vocabulary)
    data_there(data)
    from diptych.runs.train_tokenizer import learn_vocabulary

    found = learn_vocabulary(data, split, pieces, out)
    say(f"{out}: {found:,} pieces; a run reads them with --vocabulary {out} --model.vocabulary {found}")
