"""The mean of all that was seen."""

from __future__ import annotations

import torch

from diptych.modules.pool import RunningMean


def test_what_is_usual_is_the_mean_of_all_that_was_seen():
    torch.manual_seed(0)
    usual, seen = RunningMean(3), torch.randn(40, 3) + 2
    for part in seen.split([1, 30, 9]):
        usual.update(part.sum(0), torch.tensor(float(len(part))))
    torch.testing.assert_close(usual.mean, seen.mean(0))
    before = usual.mean.clone()
    usual.update(torch.zeros(3), torch.tensor(0.0))
    assert torch.equal(usual.mean, before)
