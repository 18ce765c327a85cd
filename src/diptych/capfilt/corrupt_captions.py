"""Writing a noised set of pairs, and the truth about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.progress import track

from diptych.config.capfilt import CorruptCaptions
from diptych.data.sources.ablations import CorruptedCaptions
from diptych.data.sources.base import DataError
from diptych.data.sources.captions import open_captions
from diptych.data.webdataset.writer import Sample, picture_file, sample_texts, write_shard
from diptych.utils.io import atomic_write
from diptych.utils.lock import single_writer

TRUTH = "truth.jsonl"


@single_writer
def corrupt_captions(asked: CorruptCaptions, out: Path) -> tuple[int, int]:
    """Writes ``out/SPLIT-00000.tar`` … and truth.jsonl; how many captions were dealt to others, and how many there are.

    Raises DataError, BadSample.
    """
    plain = open_captions(asked.data, asked.split)
    images = range(len(plain))[asked.first : asked.last or None]
    if not images:
        raise DataError(f"no image from {asked.first} to {asked.last} of the {len(plain)}; give other --first, --last")
    if there := next((path.name for path in (*out.glob(f"{asked.split}-*.tar"), out / TRUTH) if path.exists()), ""):
        raise DataError(f"{out} holds {there} already; give another --out, or remove what was written there")
    source = CorruptedCaptions(plain, asked.share, asked.seed, images)
    out.mkdir(parents=True, exist_ok=True)
    truth: list[dict[str, Any]] = []
    for number, first in enumerate(track(images[:: asked.shard_size], description="writing shards")):
        samples = []
        for index in range(first, min(first + asked.shard_size, images.stop)):
            rows = _truth(source, index)
            told = sample_texts(source.captions(index), {"noise": rows}, source.where(index))
            samples.append(Sample(f"{index:08d}", *picture_file(source.source, index), told))
            truth += rows
        with atomic_write(out / f"{asked.split}-{number:05d}.tar") as path:
            write_shard(path, samples)
    with atomic_write(out / TRUTH) as path:
        path.write_text("".join(json.dumps(row) + "\n" for row in truth))
    return sum(not row["own"] for row in truth), len(truth)


def _truth(source: CorruptedCaptions, index: int) -> list[dict[str, Any]]:
    """Of each caption of an image, whose it truly is."""
    return [
        {"key": f"{index:08d}", "caption": place, "own": owner == index, "of": f"{owner:08d}", "its": its}
        for place, (owner, its) in enumerate(source.owners(index))
    ]
