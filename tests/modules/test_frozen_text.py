"""What reads given features."""

from __future__ import annotations

import torch
from torch import nn

from diptych.modules.frozen_text import InputDropout


def test_while_training_a_share_of_what_is_given_is_dropped_and_the_rest_raised():
    torch.manual_seed(0)
    linear = nn.Linear(400, 400)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    dropping, given = InputDropout.like(linear, 0.25), torch.ones(50, 400)
    read = dropping(given)
    torch.testing.assert_close(read.unique(), torch.tensor([0, 4 / 3]))
    assert abs((read == 0).float().mean().item() - 0.25) < 0.02
    torch.testing.assert_close(dropping.eval()(given), given)


def test_it_learns_another_layers_weights_under_the_same_names():
    linear = nn.Linear(3, 2)
    dropping = InputDropout.like(linear, 0.1)
    assert dropping.weight is linear.weight and dropping.bias is linear.bias
    assert list(dropping.state_dict()) == list(linear.state_dict())
