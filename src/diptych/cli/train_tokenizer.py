"""diptych train-tokenizer DATA --out FILE.txt [--size 8000] [--split train] [--columns caption=NAME]

Trains a WordPiece vocabulary (lower case) on the captions of a split.

Examples:
  diptych train-tokenizer flickr8k/ --size 8000 --out words.txt
  diptych pretrain vilt.small --data flickr8k/ --vocabulary words.txt --model.vocab_size 8000 --out runs/vilt

  --out FILE.txt   is written with one token per line, like BERT's vocab.txt
  --size N         tokens at most; the command prints how many it wrote, which is the run's --model.vocab_size
"""

from __future__ import annotations

from pathlib import Path

from diptych.cli.arguments import parse_int, pop_option, pop_positional, wants_help
from diptych.cli.errors import UsageError
from diptych.config.data import Columns, DataLayout
from diptych.config.validation import VocabSize
from diptych.runs.check_inputs import check_data
from diptych.utils.terminal import echo


def train_tokenizer_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        echo(__doc__)
        return
    data, out = pop_positional(args, "the data"), Path(pop_option(args, "--out"))
    size, split = pop_option(args, "--size", "8000"), pop_option(args, "--split", "train")
    layout = DataLayout(Columns.parse(pop_option(args, "--columns", "")), pop_option(args, "--images_root", ""))
    if args:
        raise UsageError(
            f"train-tokenizer takes DATA, --out, --size, --split, --columns and --images_root, not {' '.join(args)}"
        )
    max_size = parse_int(size, "--size", VocabSize)
    check_data(data, layout)
    from diptych.runs.train_tokenizer import train_tokenizer

    tokens = train_tokenizer(data, split, max_size, out, layout)
    echo(f"{out}: {tokens:,} tokens; a run reads them with --vocabulary {out} --model.vocab_size {tokens}")
