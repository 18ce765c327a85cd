"""diptych train-tokenizer DATA --out FILE.txt [--size 8000] [--split train]

Learns the pieces that the captions of a split are best cut into (WordPiece, lower case), and writes them one a line, as BERT's
are. A run reads them with --vocabulary FILE.txt --model.vocab_size N, where N is how many there are.
"""

from __future__ import annotations

from pathlib import Path

from diptych.cli.arguments import asks_help, positional, take, whole
from diptych.cli.refusal import UsageError
from diptych.config.validation import VocabSize
from diptych.runs.validate import check_data
from diptych.utils.terminal import echo


def train_tokenizer_command(words: list[str]) -> None:
    if asks_help(words) or not words:
        echo(__doc__)
        return
    data, out = positional(words, "the data"), Path(take(words, "--out"))
    size, split = take(words, "--size", "8000"), take(words, "--split", "train")
    if words:
        raise UsageError(f"vocabulary does not know {' '.join(words)}")
    pieces = whole(size, "--size", VocabSize)
    check_data(data)
    from diptych.runs.train_tokenizer import train_tokenizer

    found = train_tokenizer(data, split, pieces, out)
    echo(f"{out}: {found:,} pieces; a run reads them with --vocabulary {out} --model.vocab_size {found}")
