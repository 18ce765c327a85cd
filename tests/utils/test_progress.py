"""Progress without a terminal: a line every half minute, with the time left."""

from __future__ import annotations

from itertools import count

import pytest

from diptych.utils.progress import track


def test_a_line_every_half_minute_says_what_is_done_and_how_long_the_rest_takes(capsys: pytest.CaptureFixture[str]):
    seconds = count(0, 12)  # each item takes 12 seconds
    assert list(track(range(7), "answering", total=10, completed=3, clock=lambda: next(seconds))) == list(range(7))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["answering: 6 of 10, 0:00:48 left", "answering: 9 of 10, 0:00:12 left"]


def test_short_work_prints_nothing(capsys: pytest.CaptureFixture[str]):
    assert list(track(iter("abc"), "answering", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
