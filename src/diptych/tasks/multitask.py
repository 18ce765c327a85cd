"""One model under several tasks, a batch being of one of them (Lu et al., 12-in-1, CVPR 2020, section 3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diptych.batch import Batch
from diptych.protocols import ChanceLoss, TrainStep


class MultiTask(nn.Module):
    """A step: `tasks` are steps of the same `model`, each with one of the `heads`; ``Batch.task`` names the one that is run.

    The losses of the others are 0, over no terms. `heads` may hold more, which a checkpoint brings along. Differs from
    12-in-1: which task comes when, and when one rests, is for the data to say.
    """

    def __init__(self, model: nn.Module, heads: nn.ModuleDict, tasks: Mapping[str, TrainStep]):
        super().__init__()
        self.model, self.heads = model, heads
        self.tasks = dict(tasks)  # no ModuleDict: their weights are the model's and the heads', and stand there once
        self.weights = {name: weight for task in tasks.values() for name, weight in task.weights.items()}
        self.chance_losses: dict[str, ChanceLoss] = {
            n: f for task in tasks.values() for n, f in task.chance_losses.items()
        }
        if len(self.weights) != sum(len(task.weights) for task in tasks.values()):
            raise ValueError(f"two of the tasks {', '.join(tasks)} have a loss of one name")

    def task(self, batch: Batch) -> TrainStep:
        """The one that `batch` is of. Raises ValueError."""
        if batch.task not in self.tasks:
            raise ValueError(f"a batch of task {batch.task!r}; there are {', '.join(self.tasks)}")
        return self.tasks[batch.task]

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return self._idle(batch) | self.task(batch).num_terms(batch)

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._idle(batch) | self.task(batch)(batch, counts)

    def _idle(self, batch: Batch) -> dict[str, Tensor]:
        return {name: torch.zeros((), device=batch.ids.device) for name in self.weights}
