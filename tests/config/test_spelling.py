"""Suggested names: one rule for all messages."""

from __future__ import annotations

from pathlib import Path

import pytest

import diptych
from diptych.config.spelling import MAX_NAMES, nearest_names, suggest_name

SOURCE = Path(diptych.__file__).parent


@pytest.mark.parametrize(
    ("name", "known", "suggestion"),
    [
        ("vilt.bsae", ["clip.base", "vilt.base"], "; did you mean vilt.base?"),
        ("NUM-heads", ["num_heads", "depth"], "; did you mean num_heads?"),
        ("01.JPG", ["001.jpg", "b.png"], "; did you mean 001.jpg?"),
        ("hard", ["RandomNegatives", "HardNegatives"], "; did you mean HardNegatives?"),
        ("zzz", ["depth"], ""),
        ("caption", ["caption "], "; did you mean 'caption '?"),
        ("caption", ["capt\x1b[31mion"], r"; did you mean 'capt\x1b[31mion'?"),
        ("caption", ["\u202ecaption"], r"; did you mean '\u202ecaption'?"),
    ],
)
def test_the_nearest_name_is_suggested_and_never_acts_on_a_terminal(name: str, known: list[str], suggestion: str):
    assert suggest_name(name, known) == suggestion


def test_several_names_are_in_the_order_of_their_similarity():
    assert nearest_names("vqaa", ["retrieval", "albef.vqa", "vqa"], 2) == ["vqa", "albef.vqa"]
    assert nearest_names("crossattn", ["cross_attn", "crossing"], similarity=0.9) == ["cross_attn"]
    assert nearest_names("a" * 10**6, ["b" * 10**6, *map(str, range(2 * MAX_NAMES))]) == []


def test_no_other_file_has_a_rule_of_its_own():
    files = {path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}
    assert [name for name, text in files.items() if "get_close_matches" in text] == ["config/spelling.py"]
    assert [name for name, text in files.items() if "def parse_json(" in text] == ["utils/io.py"]
    assert [name for name, text in files.items() if "def preview(" in text or "def _preview(" in text] == [
        "config/validation.py"
    ]
