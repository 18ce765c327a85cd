"""Errors of from_json name the field that does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from diptych.config.run import Pretrain
from diptych.config.serialization import from_json


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"run: expected an object with fields, got \[\]"),
        ({"images": ""}, "run.images: expected an object with fields, got ''"),
        ({"model": []}, r"run.model: expected one of ViTConfig, .*, got \[\]"),
    ],
)
def test_a_value_that_is_not_an_object_is_rejected(value: Any, message: str):
    with pytest.raises(ValueError, match=message):
        from_json(Pretrain, value)
