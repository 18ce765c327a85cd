"""The residual addition: LayerScale and stochastic depth."""

from __future__ import annotations

import pytest
import torch

from diptych.modules.block import Residual
from diptych.modules.tokens import Span, Tokens, packing


def tokens(b: int = 400) -> Tokens:
    mask = torch.arange(3) < 1 + torch.arange(b)[:, None] % 3
    return Tokens.from_padded(torch.ones(b, 3, 2), mask, Span("text", "words", 3))


@pytest.mark.parametrize("packed", [False, True])
def test_a_branch_is_scaled_by_channel_and_added(packed: bool):
    with packing(packed):
        branch = tokens(2)
    add = Residual(2, scale=0.1).eval()
    assert add.scale is not None
    add.scale.data[1] = 3.0
    torch.testing.assert_close(add(branch, branch).values, branch.values * torch.tensor([1.1, 4.0]))
    plain = Residual(2)
    assert not list(plain.parameters())
    torch.testing.assert_close(plain(branch, branch).values, 2 * branch.values)


@pytest.mark.parametrize("packed", [False, True])
def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean(packed: bool):
    torch.manual_seed(0)
    with packing(packed):
        branch = tokens()
    add = Residual(2, drop_path=0.25).train()
    added = add(branch, branch).pack().values - branch.pack().values
    samples = [part.flatten() for part in added.split(branch.layout.lengths)]
    assert all((part == part[0]).all() for part in samples), "a sample was dropped in part"
    factors = [part[0].item() for part in samples]
    assert all(factor in (0.0, pytest.approx(4 / 3)) for factor in factors)
    assert sum(factors) / len(factors) == pytest.approx(1, abs=0.1)
    assert torch.equal(add.eval()(branch, branch).values, 2 * branch.values)
