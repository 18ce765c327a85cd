"""One optimizer step over ranks and micro-batches, in one process: the scale of the gradients and their reductions."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from diptych.config.training import Training
from diptych.data.loader import Loaded
from diptych.training.diagnostics import Diagnostics
from diptych.training.distributed import Group
from diptych.training.step import OptimizerStep
from tests.training.toy import Toy, micro, settings

CPU = torch.device("cpu")


class EqualRanks(Group):
    """Ranks that all hold the same samples, so that sums and gradients of the others need no other process."""

    def sum(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.world * value.detach().float() for name, value in values.items()}

    def gather(self, value):
        return [value] * self.world

    def wrap(self, module, parallel="ddp"):
        return module


def one_step(group: Group, training: Training, loaded: list[Loaded]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The row of metrics of a first step, and the weights after it."""
    step = OptimizerStep(Toy(), training, group)
    row, *_ = step(0, loaded, Diagnostics(step.step.chance_losses, patience=10))
    return row, step.module.state_dict()


def test_ranks_with_equal_samples_take_the_step_of_one():
    training, loaded = settings(batch_size=8), [micro(list(range(1, 9)), 0, 0)]
    row, weights = one_step(Group(CPU), training, loaded)
    for world in (2, 3):
        others_row, others_weights = one_step(EqualRanks(CPU, 0, world), training, loaded)
        assert others_row.pop("samples") == world * row["samples"]
        for name, value in others_row.items():
            torch.testing.assert_close(value, row[name], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(others_weights, weights)


class CountedReductions(Group):
    """One process behind DDP, which counts how often its gradients are reduced."""

    reductions = 0

    def wrap(self, module, parallel="ddp"):
        def count(state, bucket):
            type(self).reductions += 1
            done = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        ddp = DistributedDataParallel(module, find_unused_parameters=True, broadcast_buffers=False)
        ddp.register_comm_hook(None, count)
        return ddp


def test_gradients_are_reduced_once_for_all_micro_batches(tmp_path: Path):
    training = settings(batch_size=8, grad_accum=4)
    loaded = [micro([2 * i + 1, 2 * i + 2], 0, 0) for i in range(4)]
    row, weights = one_step(Group(CPU), training, loaded)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        CountedReductions.reductions = 0
        ddp_row, ddp_weights = one_step(CountedReductions(CPU), training, loaded)
    finally:
        dist.destroy_process_group()
    assert CountedReductions.reductions == 1
    assert ddp_row == row
    torch.testing.assert_close(ddp_weights, weights)
