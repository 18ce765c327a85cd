"""diptych corrupt-captions DATA --out DIR [--fraction 0.5] [--seed S] [--split train] [--FIELD VALUE ...]

Writes tar shards in which a fraction of the captions is swapped between images: data to measure a caption filter on.

Examples:
  diptych corrupt-captions flickr8k/ --fraction 0.5 --out noisy
  diptych corrupt-captions flickr8k/ --fraction 0.2 --first 0 --last 1000 --out noisy-1k

  --out DIR             gets the tars and truth.jsonl: for every caption, whether it is the original, and its source
                        image and caption
  --first I, --last J   only images I to J - 1
"""

from __future__ import annotations

from dataclasses import replace

from diptych.cli.arguments import apply_overrides, pop_folder, pop_positional, show_help, wants_help
from diptych.config.capfilt import CorruptCaptions
from diptych.utils.terminal import echo


def corrupt_captions_command(args: list[str]) -> None:
    if wants_help(args) or not args:
        return show_help(CorruptCaptions(), "corrupt-captions DATA --out DIR", __doc__, positionals=("data",))
    data, out = pop_positional(args, "the data"), pop_folder(args)
    config = replace(CorruptCaptions(), data=data)
    config = apply_overrides(config, args, "corrupt-captions", positionals=("data",))
    from diptych.capfilt.corrupt_captions import corrupt_captions

    swapped, captions = corrupt_captions(config, out)
    echo(f"{swapped:,} of {captions:,} captions swapped between images: {out / 'truth.jsonl'}")
