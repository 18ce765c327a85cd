"""diptych noise DATA --out DIR [--share 0.5] [--seed S] [--split train]

Shards in which a share of the captions is dealt to other images: what a filter of captions is measured on. DIR gets the
tars and truth.jsonl, which says of every caption whether it is of its image, and whose it truly is. --first I, --last J:
the images from I up to J alone.
"""

from __future__ import annotations

from dataclasses import replace

from diptych.cli.arguments import asks_help, folder, overridden, positional, show_help
from diptych.config.capfilt import Noise
from diptych.utils.terminal import say


def noise_command(words: list[str]) -> None:
    if asks_help(words) or not words:
        return show_help(Noise(), "noise DATA --out DIR", __doc__, placed=("data",))
    data, out = positional(words, "the data"), folder(words)
    asked = overridden(replace(Noise(), data=data), words, "noise", top=frozenset(), placed=("data",))
    from diptych.capfilt.corrupt_captions import noise

    dealt, captions = noise(asked, out)
    say(f"{dealt:,} of {captions:,} captions dealt to other images: {out / 'truth.jsonl'}")
