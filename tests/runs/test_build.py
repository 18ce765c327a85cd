"""How a run's model is built."""

from __future__ import annotations

from dataclasses import replace

import torch

from diptych.config.run import Embedders
from diptych.models.albef import recipes as albef
from diptych.runs.build import build


def test_first_weights_may_be_wider_each_once():
    narrow, wide = (build(replace(albef.small(), embedders=Embedders(), init_scale=widen)) for widen in (1.0, 3.5))
    of_layer = "model.text.0.attention.qkv.weight"
    before, after = dict(narrow.named_parameters()), dict(wide.named_parameters())
    assert torch.equal(after[of_layer], 3.5 * before[of_layer])
    assert torch.equal(after["heads.match.linear.weight"], 3.5 * before["heads.match.linear.weight"])
    tied = "model.words.word.weight"  # to the head that guesses words
    assert torch.equal(after[tied], 3.5 * before[tied])
    places = "model.words.position.weight"
    assert torch.equal(after[places], before[places])
