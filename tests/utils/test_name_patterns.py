from __future__ import annotations

import pytest

from diptych.utils.name_patterns import MAX_RANGE, matches


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("text.3.attention.query.weight", "text", True),
        ("text.3.attention.query.weight", "text.*.attention", True),
        ("text.3.attention.query.weight", "text.{0..3}", True),
        ("text.3.attention.query.weight", "text.{0..2}", False),
        ("text.10.norm.weight", "text.{1..9}", False),
        ("streams.text.10.norm.weight", "streams.text.{0..11}.{0..1}", False),
        ("blocks.2.heads.1.bias", "blocks.{2..3}.heads.{0..1}", True),
        ("text", "text.3", False),
        ("textual.norm", "text", False),
    ],
)
def test_a_pattern_matches_the_first_parts_of_a_name(name, pattern, expected):
    assert matches(name, pattern) is expected


def test_a_huge_range_is_refused():
    with pytest.raises(ValueError, match="a range of more than 1000 numbers"):
        matches("a.1", f"a.{{0..{MAX_RANGE}}}")
