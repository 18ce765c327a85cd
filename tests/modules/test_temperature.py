"""The learned scale of cosine similarities."""

from __future__ import annotations

import math

import pytest
import torch

from diptych.modules.heads import LogScale, Temperature


@pytest.mark.parametrize("scale", [LogScale(200.0, maximum=100), Temperature(0.0001)], ids=["log", "temperature"])
def test_a_scale_out_of_bounds_is_clamped_and_stays_trainable(scale: LogScale | Temperature) -> None:
    (parameter,) = scale.parameters()
    bound = 100.0 if isinstance(scale, LogScale) else 1000.0
    first, second = scale(), scale()  # as in a step with two objectives
    assert first.item() == second.item() == pytest.approx(bound, rel=1e-5)
    (first + second).backward()
    assert parameter.grad is not None and parameter.grad.item() != 0
    torch.optim.SGD([parameter], 1e-9 if isinstance(scale, Temperature) else 1e-4).step()
    assert scale().item() < bound


def test_evaluation_does_not_change_the_parameter() -> None:
    scale = LogScale(200.0, maximum=100).eval()
    assert scale().item() == pytest.approx(100.0, rel=1e-5)
    assert scale.log.item() == pytest.approx(math.log(200.0))
