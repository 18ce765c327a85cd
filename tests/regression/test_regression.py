"""Every recipe computes the recorded numbers (see `tests.regression.record`)."""

from __future__ import annotations

import json

import pytest

from tests.regression import record

RECORDED = json.loads(record.RECORDED.read_text())


@pytest.mark.quick("vilt.tiny")
@pytest.mark.parametrize("name", RECORDED)
def test_a_recipe_computes_the_recorded_numbers(name: str):
    now = json.loads(json.dumps(record.numbers(name)))
    assert not list(record.differences(RECORDED[name], now, 1e-4))


def test_every_recipe_is_recorded():
    assert set(RECORDED) == set(record.names())


def test_differences_are_listed_by_path():
    was = {"losses": [{"itc": 1.0}], "ids": [1, 2]}
    assert not list(record.differences(was, {"losses": [{"itc": 1.0 + 1e-7}], "ids": [1, 2]}, 1e-6))
    lines = list(record.differences(was, {"losses": [{"itc": 1.1, "itm": 2.0}], "ids": [1, 3]}, 1e-6))
    assert [line.partition(":")[0] for line in lines] == ["/ids[1]", "/losses[0]/itc", "/losses[0]/itm"]
