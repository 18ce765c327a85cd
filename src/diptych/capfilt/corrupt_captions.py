"""Corrupted captions: tar shards in which a share of the captions is swapped between images, and the ground truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.progress import track

from diptych.config.capfilt import CorruptCaptions
from diptych.data.sources.ablations import CorruptedCaptions
from diptych.data.sources.base import DataError
from diptych.data.sources.captions import open_captions
from diptych.data.sources.division import say_division
from diptych.data.webdataset.writer import Sample, picture_file, sample_texts, write_shard
from diptych.utils.io import atomic_write
from diptych.utils.lock import single_writer

TRUTH = "truth.jsonl"


@single_writer
def corrupt_captions(config: CorruptCaptions, out: Path) -> tuple[int, int]:
    """Writes ``out/SPLIT-00000.tar`` … and truth.jsonl; returns the numbers of swapped and of all captions.

    Raises DataError, BadSample.
    """
    clean = open_captions(config.data, config.split, config.layout)
    say_division(clean)
    images = range(len(clean))[config.first : config.last or None]
    if not images:
        raise DataError(
            f"no image from {config.first} to {config.last} of the {len(clean)}; give other --first, --last"
        )
    if existing := next((path.name for path in (*out.glob(f"{config.split}-*.tar"), out / TRUTH) if path.exists()), ""):
        raise DataError(f"{out} already contains {existing}; give another --out, or remove what was written there")
    source = CorruptedCaptions(clean, config.fraction, config.seed, images)
    out.mkdir(parents=True, exist_ok=True)
    truth: list[dict[str, Any]] = []
    for number, first in enumerate(track(images[:: config.shard_size], description="writing shards")):
        samples = []
        for index in range(first, min(first + config.shard_size, images.stop)):
            rows = _truth(source, index)
            texts = sample_texts(source.captions(index), {"corruption": rows}, source.where(index))
            samples.append(Sample(f"{index:08d}", *picture_file(source.source, index), texts))
            truth += rows
        with atomic_write(out / f"{config.split}-{number:05d}.tar") as path:
            write_shard(path, samples)
    with atomic_write(out / TRUTH) as path:
        path.write_text("".join(json.dumps(row) + "\n" for row in truth))
    return sum(not row["is_original"] for row in truth), len(truth)


def _truth(source: CorruptedCaptions, index: int) -> list[dict[str, Any]]:
    """For each caption of an image: whether it is the image's original, and its source image and caption."""
    return [
        {
            "key": f"{index:08d}",
            "caption": place,
            "is_original": owner == index,
            "source_image": f"{owner:08d}",
            "source_caption": its,
        }
        for place, (owner, its) in enumerate(source.owners(index))
    ]
