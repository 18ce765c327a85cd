"""Input dropout on frozen features."""

from __future__ import annotations

import torch
from torch import nn

from diptych.modules.frozen_text import InputDropout


def test_in_training_a_fraction_of_the_input_is_dropped_and_the_rest_scaled_up():
    torch.manual_seed(0)
    linear = nn.Linear(400, 400)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    layer, ones = InputDropout.like(linear, 0.25), torch.ones(50, 400)
    output = layer(ones)
    torch.testing.assert_close(output.unique(), torch.tensor([0, 4 / 3]))
    assert abs((output == 0).float().mean().item() - 0.25) < 0.02
    torch.testing.assert_close(layer.eval()(ones), ones)


def test_like_shares_the_weights_and_state_dict_names_of_a_linear_layer():
    linear = nn.Linear(3, 2)
    layer = InputDropout.like(linear, 0.1)
    assert layer.weight is linear.weight and layer.bias is linear.bias
    assert list(layer.state_dict()) == list(linear.state_dict())
