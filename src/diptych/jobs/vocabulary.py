"""A vocabulary learned from captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diptych.data.examples import LONGEST_TEXT
from diptych.data.files import open_captions
from diptych.data.source import Captioned, DataError
from diptych.data.vocabularies import LISTS
from diptych.data.wordpiece import learn_pieces
from diptych.jobs.folder import RunError
from diptych.train.lock import locked
from diptych.train.written import written_whole


def learn_vocabulary(data: str, split: str, size: int, out: Path) -> int:
    """Writes at most `size` pieces of a split's captions, one a line, to a new file; how many there are. Raises DataError,
    RunError.
    """
    if out.suffix not in LISTS:
        raise DataError(f"{out}: a list of pieces is called {' or '.join(f'FILE{end}' for end in LISTS)}")
    with locked(out.parent, out.name):
        if out.exists():
            raise RunError(f"{out} is there already, and a run may read it: give another --out, or remove it first")
        try:
            pieces = learn_pieces(_captions(open_captions(data, split)), size)
        except ValueError as error:
            raise DataError(f"{data}: {error}") from None
        with written_whole(out) as path:
            path.write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8", newline="\n")
    return len(pieces)


def _captions(source: Captioned) -> Iterator[str]:
    for i in range(len(source)):
        for text in source.captions(i):
            yield text[:LONGEST_TEXT].encode(errors="ignore").decode()
