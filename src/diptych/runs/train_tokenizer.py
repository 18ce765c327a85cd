"""Training of a WordPiece vocabulary from captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diptych.config.data import USUAL_LAYOUT, DataLayout
from diptych.data.examples import MAX_TEXT_CHARS
from diptych.data.sources.base import Captioned, DataError
from diptych.data.sources.captions import open_captions
from diptych.data.sources.division import say_division
from diptych.data.tokenizers.tokenizer import WORDPIECE_SUFFIXES
from diptych.data.tokenizers.wordpiece import train_wordpiece
from diptych.inference.saved_model import RunError
from diptych.utils.io import atomic_write
from diptych.utils.lock import locked


def train_tokenizer(data: str, split: str, size: int, out: Path, layout: DataLayout = USUAL_LAYOUT) -> int:
    """Trains WordPiece on the captions of a split and writes the vocabulary to a new file, one token per line.

    Args:
        size: tokens at most.

    Returns:
        Number of tokens.

    Raises:
        DataError: the data cannot be read or has too few captions, or `out` has another suffix than a vocabulary file.
        RunError: `out` exists.
    """
    if out.suffix not in WORDPIECE_SUFFIXES:
        raise DataError(
            f"--out {out}: expected a name such as {' or '.join(f'FILE{suffix}' for suffix in WORDPIECE_SUFFIXES)}"
        )
    with locked(out.parent, out.name):
        if out.exists():
            raise RunError(f"{out} is there already, and a run may read it: give another --out, or remove it first")
        try:
            source = open_captions(data, split, layout)
            say_division(source)
            tokens = train_wordpiece(_captions(source), size)
        except ValueError as error:
            raise DataError(f"{data}: {error}") from None
        with atomic_write(out) as path:
            path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="\n")
    return len(tokens)


def _captions(source: Captioned) -> Iterator[str]:
    """All captions, cut to `MAX_TEXT_CHARS` characters, without lone surrogates."""
    for i in range(len(source)):
        for text in source.captions(i):
            yield text[:MAX_TEXT_CHARS].encode(errors="ignore").decode()
