"""Weights by name: tied ones are one, and what does not fit is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from diptych.utils.state_dict import load_state, mismatch, named_weights, tied_weights


def module(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    made[2].weight = made[0].weight
    return made


def test_a_tied_weight_is_one_under_its_first_name():
    made = module()
    held = named_weights(made)
    assert tied_weights(made) == {"2.weight": "0.weight"}
    assert "0.weight" in held and "2.weight" not in held and "1.running_mean" in held
    held["0.bias"].zero_()
    assert not made[0].bias.any(), "they share memory"


@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
def test_it_may_stand_under_either_name_or_both(name: str):
    first, other = module(), module(seed=1)
    state = named_weights(first)
    state = {name if n == "0.weight" else n: t for n, t in state.items()}
    assert mismatch(other, state) == "" == mismatch(other, first.state_dict())
    load_state(other, state)
    assert torch.equal(other[0].weight, first[0].weight) and other[2].weight is other[0].weight


def test_two_differing_copies_of_a_tied_weight_are_refused():
    state = dict(module().state_dict())
    state["2.weight"] = state["2.weight"] + 1e-6
    assert mismatch(module(), state) == "tied here, but different: 2.weight and 0.weight"


def test_what_is_missing_too_much_or_of_another_shape_is_told():
    state = named_weights(module())
    assert mismatch(module(), {n: t for n, t in state.items() if n != "0.bias"}) == "missing: 0.bias"
    assert mismatch(module(), state | {"more": torch.ones(1)}) == "unexpected: more"
    told = mismatch(module(), state | {"0.bias": torch.ones(2)})
    assert told == "of another shape: 0.bias is (2,), the model has (3,)"
    whole = mismatch(module(), state | {"0.bias": torch.ones(3, dtype=torch.long)})
    assert whole == "of another shape: 0.bias is (3,) of integers, the model has (3,)"
