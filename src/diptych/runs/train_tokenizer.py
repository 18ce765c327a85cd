"""A vocabulary learned from captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diptych.data.examples import LONGEST_TEXT
from diptych.data.sources.base import Captioned, DataError
from diptych.data.sources.captions import open_captions
from diptych.data.tokenizers.tokenizer import LISTS
from diptych.data.tokenizers.wordpiece import train_wordpiece
from diptych.runs.run_folder import RunError
from diptych.utils.io import atomic_write
from diptych.utils.lock import locked


def train_tokenizer(data: str, split: str, size: int, out: Path) -> int:
    """Writes at most `size` pieces of a split's captions, one a line, to a new file; how many there are. Raises DataError,
    RunError.
    """
    if out.suffix not in LISTS:
        raise DataError(f"{out}: a list of pieces is called {' or '.join(f'FILE{end}' for end in LISTS)}")
    with locked(out.parent, out.name):
        if out.exists():
            raise RunError(f"{out} is there already, and a run may read it: give another --out, or remove it first")
        try:
            pieces = train_wordpiece(_captions(open_captions(data, split)), size)
        except ValueError as error:
            raise DataError(f"{data}: {error}") from None
        with atomic_write(out) as path:
            path.write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8", newline="\n")
    return len(pieces)


def _captions(source: Captioned) -> Iterator[str]:
    for i in range(len(source)):
        for text in source.captions(i):
            yield text[:LONGEST_TEXT].encode(errors="ignore").decode()
