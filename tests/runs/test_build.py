"""Initial weights of a run's model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diptych.config.data import Embedders
from diptych.models.albef import recipes as albef
from diptych.runs.build import build


@pytest.mark.slow
def test_init_scale_multiplies_each_weight_once():
    unscaled, scaled = (build(replace(albef.small(), embedders=Embedders(), init_scale=scale)) for scale in (1.0, 3.5))
    layer = "model.text.0.attention.qkv.weight"
    before, after = dict(unscaled.named_parameters()), dict(scaled.named_parameters())
    assert torch.equal(after[layer], 3.5 * before[layer])
    assert torch.equal(after["heads.itm.linear.weight"], 3.5 * before["heads.itm.linear.weight"])
    tied = "model.words.word.weight"  # shared with the MLM head, but scaled only once
    assert torch.equal(after[tied], 3.5 * before[tied])
    positions = "model.words.position.weight"
    assert torch.equal(after[positions], before[positions])
