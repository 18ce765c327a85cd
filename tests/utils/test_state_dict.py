"""Weights by name: tied weights are one, and messages name the weights that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from diptych.utils.state_dict import load_state, mismatch, named_weights, tied_weights, without_weights


def module(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


def test_a_tied_weight_is_listed_once_under_its_first_name():
    model = module()
    weights = named_weights(model)
    assert tied_weights(model) == {"2.weight": "0.weight"}
    assert "0.weight" in weights and "2.weight" not in weights and "1.running_mean" in weights
    weights["0.bias"].zero_()
    assert not model[0].bias.any(), "the tensors share memory with the module"


@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
def test_a_tied_weight_is_loaded_from_either_name_or_both(name: str):
    first, other = module(), module(seed=1)
    state = named_weights(first)
    state = {name if n == "0.weight" else n: t for n, t in state.items()}
    assert mismatch(other, state) == "" == mismatch(other, first.state_dict())
    load_state(other, state)
    assert torch.equal(other[0].weight, first[0].weight) and other[2].weight is other[0].weight


def test_two_differing_copies_of_a_tied_weight_raise():
    state = dict(module().state_dict())
    state["2.weight"] = state["2.weight"] + 1e-6
    assert mismatch(module(), state) == "tied here, but different: 2.weight and 0.weight"


def test_missing_and_unexpected_weights_and_other_shapes_are_named():
    state = named_weights(module())
    assert mismatch(module(), {n: t for n, t in state.items() if n != "0.bias"}) == "missing: 0.bias"
    assert mismatch(module(), state | {"more": torch.ones(1)}) == "unexpected: more"
    message = mismatch(module(), state | {"0.bias": torch.ones(2)})
    assert message == "of another shape: 0.bias is (2,), the model has (3,)"
    message = mismatch(module(), state | {"0.bias": torch.ones(3, dtype=torch.long)})
    assert message == "of another shape: 0.bias is (3,) of integers, the model has (3,)"


def test_modules_without_weights_have_the_shapes_of_others_and_draw_no_numbers():
    def build() -> nn.Module:
        embedding, linear = nn.Embedding(5, 3), nn.Linear(3, 4)
        for init in (nn.init.normal_, nn.init.uniform_, nn.init.xavier_uniform_, nn.init.kaiming_normal_):
            init(linear.weight)
        nn.init.trunc_normal_(embedding.weight, std=0.02)
        return nn.Sequential(embedding, linear, nn.Conv2d(3, 2, 2))

    torch.manual_seed(0)
    before = torch.get_rng_state()
    with without_weights():
        shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
    assert torch.equal(torch.get_rng_state(), before)
    assert shapes == {name: tensor.shape for name, tensor in build().state_dict().items()}
    with without_weights():
        real = torch.zeros(100, device="cpu").normal_()
        nn.init.uniform_(tensor=torch.empty(3, device="cpu"))
    assert real.std() > 0.5, "tensors with values get their draws"
