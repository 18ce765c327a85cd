"""Input dropout on frozen features."""

from __future__ import annotations

import torch
from torch import nn

from diptych.modules.frozen_text import InputDropout


def test_in_training_a_fraction_of_the_input_is_dropped_and_the_rest_scaled_up():
    torch.manual_seed(0)
    layer, ones = InputDropout(400, 400, 0.25), torch.ones(50, 400)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    output = layer(ones)
    torch.testing.assert_close(output.unique(), torch.tensor([0, 4 / 3]))
    assert abs((output == 0).float().mean().item() - 0.25) < 0.02
    torch.testing.assert_close(layer.eval()(ones), ones)


def test_its_state_dict_and_initial_weights_are_those_of_a_linear_layer():
    torch.manual_seed(0)
    linear = nn.Linear(3, 2)
    torch.manual_seed(0)
    state = InputDropout(3, 2, 0.1).state_dict()
    assert list(state) == list(linear.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in linear.state_dict().items())
