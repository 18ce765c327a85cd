"""What a block adds back: scaled by channel, and left out for whole samples while training."""

from __future__ import annotations

import pytest
import torch

from diptych.modules.block import Residual
from diptych.modules.tokens import Span, Tokens, packing


def tokens(b: int = 400) -> Tokens:
    real = torch.arange(3) < 1 + torch.arange(b)[:, None] % 3
    return Tokens.from_padded(torch.ones(b, 3, 2), real, Span("text", "words", 3))


@pytest.mark.parametrize("packed", [False, True])
def test_a_branch_is_scaled_by_channel_and_added(packed: bool):
    with packing(packed):
        given = tokens(2)
    add = Residual(2, scale=0.1).eval()
    assert add.scale is not None
    add.scale.data[1] = 3.0
    torch.testing.assert_close(add(given, given).values, given.values * torch.tensor([1.1, 4.0]))
    plain = Residual(2)
    assert not list(plain.parameters())
    torch.testing.assert_close(plain(given, given).values, 2 * given.values)


@pytest.mark.parametrize("packed", [False, True])
def test_while_training_whole_samples_go_without_and_the_mean_stays(packed: bool):
    torch.manual_seed(0)
    with packing(packed):
        given = tokens()
    add = Residual(2, drop_path=0.25).train()
    added = add(given, given).pack().values - given.pack().values
    samples = [part.flatten() for part in added.split(given.layout.lengths)]
    assert all((part == part[0]).all() for part in samples), "a sample was left out in part"
    kept = [part[0].item() for part in samples]
    assert all(factor in (0.0, pytest.approx(4 / 3)) for factor in kept)
    assert sum(kept) / len(kept) == pytest.approx(1, abs=0.1)
    assert torch.equal(add.eval()(given, given).values, 2 * given.values)
