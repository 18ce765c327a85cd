"""The running mean over batches."""

from __future__ import annotations

import torch

from diptych.modules.pool import RunningMean


def test_the_running_mean_equals_the_mean_of_all_rows():
    torch.manual_seed(0)
    running, rows = RunningMean(3), torch.randn(40, 3) + 2
    for batch in rows.split([1, 30, 9]):
        running.update(batch.sum(0), torch.tensor(float(len(batch))))
    torch.testing.assert_close(running.mean, rows.mean(0))
    before = running.mean.clone()
    running.update(torch.zeros(3), torch.tensor(0.0))
    assert torch.equal(running.mean, before)
