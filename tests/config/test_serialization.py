"""A run.json that is no run is refused by the place that does not fit, whatever stands there."""

from __future__ import annotations

from typing import Any

import pytest

from diptych.config.run import Pretrain
from diptych.config.serialization import from_json


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([], r"run: \[\] has no fields"),
        ({"images": ""}, "run.images: '' has no fields"),
        ({"model": []}, "run.model: fits none"),
    ],
)
def test_what_has_no_fields_is_refused(value: Any, told: str):
    with pytest.raises(ValueError, match=told):
        from_json(Pretrain, value)
