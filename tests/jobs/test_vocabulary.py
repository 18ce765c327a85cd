"""`diptych vocabulary`: pieces learned from captions, in a file that nothing else stood in."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych.data.vocabularies import read_vocabulary
from diptych.jobs.folder import RunError
from diptych.jobs.vocabulary import learn_vocabulary


def test_pieces_are_learned_once_and_not_written_over(tmp_path: Path):
    out = tmp_path / "pieces.txt"
    found = learn_vocabulary("scenes:40", "train", 200, out)
    held = out.read_bytes()
    assert read_vocabulary(out).size == found and 20 < found <= 200
    with pytest.raises(RunError, match="is there already"):
        learn_vocabulary("scenes:8", "train", 100, out)
    assert out.read_bytes() == held
