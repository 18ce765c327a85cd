"""Model configs from the settings of a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest

from diptych.checkpoints.adapter import config_of
from diptych.checkpoints.read import WeightsError
from diptych.models.crossvit.config import CrossViTConfig
from diptych.models.vit.config import ViTConfig


def test_settings_become_the_config():
    assert config_of(ViTConfig, {"dim": 32, "num_heads": 4}) == ViTConfig(dim=32, num_heads=4)


def test_lists_of_json_become_tuples():
    assert config_of(ViTConfig, {"grid": [3, 4]}).grid == (3, 4)
    assert config_of(CrossViTConfig, {"stages": [[1, 2, 0]]}).stages == ((1, 2, 0),)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, r"ViTConfig: model\.depth must be in \[1, 512\]: got 0"),
        ({"dim": 30, "num_heads": 4}, r"model\.dim must be a multiple of model\.num_heads, 4: got 30"),
        ({"colour": 1}, "unexpected keyword argument 'colour'"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, Any], message: str):
    with pytest.raises(WeightsError, match=message):
        config_of(ViTConfig, settings)
