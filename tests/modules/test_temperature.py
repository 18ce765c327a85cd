"""The learned scale of cosine similarities."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("scale", "bound"), [(LogScale(200.0, maximum=100), 100.0), (Temperature(0.0001), 1000.0), (Temperature(2.0), 2.0)]
)
def test_evaluation_uses_the_bound_and_does_not_change_the_parameter(
    scale: LogScale | Temperature, bound: float
) -> None:
    (parameter,) = scale.parameters()
    before = parameter.item()
    assert scale.eval()().item() == pytest.approx(bound, rel=1e-5)
    assert parameter.item() == before
    assert scale.train()().item() == pytest.approx(bound, rel=1e-5)
    assert parameter.item() != before


def test_without_bounds_any_temperature_is_used() -> None:
    scale = Temperature(0.0001, bounds=None)
    assert scale().item() == scale.eval()().item() == pytest.approx(1e4)
    assert LogScale(1e4).eval()().item() == pytest.approx(1e4, rel=1e-5)
