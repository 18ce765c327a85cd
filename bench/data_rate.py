"""Images per second of one loader process on a folder of JPEGs, with simplejpeg and with Pillow alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

from bench.side_by_side import heading, in_turn, table
from diptych.config.data import ImageSettings
from diptych.data.examples import PairExamples
from diptych.data.images import decode
from diptych.data.loader import training_loader
from diptych.data.sources.captions import open_captions
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.models.vilt import recipes as vilt

BATCH = 16


def make(examples: PairExamples, batches: int, simplejpeg: Any, _round: int) -> None:
    """Loads batches in this process, the same in each round: decoded, resized, tokenized, collated."""
    with patch.object(decode, "simplejpeg", simplejpeg):
        for _ in training_loader(examples, batch_size=BATCH, seed=0, start=0, steps=batches, workers=0):
            pass


def run(data: str, split: str = "train", num_images: int = 128, rounds: int = 3) -> None:
    """Prints a table for each of ViLT's image sizes; with RandAugment at the published size."""
    decoders = {"Pillow": None} | ({"simplejpeg": decode.simplejpeg} if decode.simplejpeg else {})
    small, base = vilt.small().images, vilt.base().images
    sizes: dict[str, ImageSettings] = {f"shorter side {s.shorter_side}": s for s in (small, base)}
    for what, settings in sizes.items():
        source = open_captions(data, split, min_side=settings.shorter_side)
        examples = PairExamples(source, Tokenizer(), settings, matching=0.0)
        candidates: dict[str, Callable[[int], Any]] = {
            name: partial(make, examples, num_images // BATCH, simplejpeg) for name, simplejpeg in decoders.items()
        }
        augmented = ", RandAugment" if settings.augment else ""
        print(heading(f"Loader, {source.name}, {what}{augmented}, {num_images // BATCH * BATCH} images, one process"))
        timings, _ = in_turn(candidates, rounds)
        print(table(timings, "Pillow", num_images // BATCH * BATCH, "images"))
        if decode.simplejpeg is None:
            print("\nsimplejpeg is not installed (the extra `fast`)")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.data_rate", description=__doc__)
    parser.add_argument("--data", required=True, help="a folder of captioned JPEGs, as for `diptych pretrain --data`")
    parser.add_argument("--split", default="train")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    run(arguments.data, arguments.split, arguments.images, arguments.rounds)


if __name__ == "__main__":
    main()
