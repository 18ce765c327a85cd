"""diptych corrupt-captions DATA --out DIR [--share 0.5] [--seed S] [--split train]

Shards in which a share of the captions is dealt to other images: what a filter of captions is measured on. DIR gets the
tars and truth.jsonl, which says of every caption whether it is of its image, and whose it truly is. --first I, --last J:
the images from I up to J alone.
"""

from __future__ import annotations

from dataclasses import replace

from diptych.cli.arguments import asks_help, folder, overridden, positional, show_help
from diptych.config.capfilt import CorruptCaptions
from diptych.utils.terminal import echo


def corrupt_captions_command(words: list[str]) -> None:
    if asks_help(words) or not words:
        return show_help(CorruptCaptions(), "noise DATA --out DIR", __doc__, placed=("data",))
    data, out = positional(words, "the data"), folder(words)
    asked = overridden(
        replace(CorruptCaptions(), data=data), words, "corrupt-captions", top=frozenset(), placed=("data",)
    )
    from diptych.capfilt.corrupt_captions import corrupt_captions

    dealt, captions = corrupt_captions(asked, out)
    echo(f"{dealt:,} of {captions:,} captions dealt to other images: {out / 'truth.jsonl'}")
