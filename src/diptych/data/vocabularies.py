"""The vocabularies that come with the package: no download, no network."""

from __future__ import annotations

import gzip
from functools import lru_cache
from importlib import resources

from diptych.data.bpe import byte_pairs
from diptych.data.vocabulary import Vocabulary
from diptych.data.wordpiece import wordpiece

BERT = "bert-base-uncased"  # its pieces in the order of their ids
SCENES = "scenes"  # those of them that the built-in world says, in the same order
CLIP = "clip"  # OpenAI's byte pairs, which open_clip's CLIPs and CoCas read too
SIZES = {BERT: 30522, SCENES: 114, CLIP: 49408}
"""How many pieces each has, so that none is read to be told from the others."""


@lru_cache
def vocabulary(name: str = BERT) -> Vocabulary:
    """A vocabulary of the package, by its name."""
    folder = resources.files("diptych.data") / "vocab"
    if name == CLIP:
        lines = gzip.decompress((folder / f"{name}.txt.gz").read_bytes()).decode("utf-8").split("\n")
        return byte_pairs(name, lines)
    lines = (folder / f"{name}.txt").read_text("utf-8").rstrip("\n").split("\n")
    return wordpiece(name, tuple(lines))


def bundled(size: int) -> Vocabulary | None:
    """The vocabulary of the package that has so many pieces: what a model with `size` word embeddings reads."""
    return next((vocabulary(name) for name, has in SIZES.items() if has == size), None)
