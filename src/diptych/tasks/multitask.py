"""Multi-task training of one model, each batch of one task (Lu et al., 12-in-1, CVPR 2020, section 3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diptych.batch import Batch
from diptych.protocols import ChanceLoss, TrainStep


class MultiTask(nn.Module):
    """A training step that runs one of the steps `tasks`, selected by ``Batch.task``.

    The steps share `model`, and have one of `heads` each.

    The losses of the other tasks are 0, over 0 terms. `heads` may include heads of no task, such as a checkpoint's.

    Differs: 12-in-1 schedules the tasks and pauses them (dynamic stop-and-go); here the data loader decides.
    """

    def __init__(self, model: nn.Module, heads: nn.ModuleDict, tasks: Mapping[str, TrainStep]):
        super().__init__()
        self.model, self.heads = model, heads
        self.tasks = dict(tasks)  # not a ModuleDict: their weights are registered once, in model and heads
        self.weights = {name: weight for task in tasks.values() for name, weight in task.weights.items()}
        self.chance_losses: dict[str, ChanceLoss] = {
            name: loss for task in tasks.values() for name, loss in task.chance_losses.items()
        }
        if len(self.weights) != sum(len(task.weights) for task in tasks.values()):
            raise ValueError(f"losses of the tasks {', '.join(tasks)} must have distinct names")

    def task(self, batch: Batch) -> TrainStep:
        """The step of the batch's task. Raises ValueError if there is none."""
        if batch.task not in self.tasks:
            raise ValueError(f"the batch's task is {batch.task!r}; expected one of {', '.join(self.tasks)}")
        return self.tasks[batch.task]

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return self._idle(batch) | self.task(batch).num_terms(batch)

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._idle(batch) | self.task(batch)(batch, counts)

    def _idle(self, batch: Batch) -> dict[str, Tensor]:
        return {name: torch.zeros((), device=batch.ids.device) for name in self.weights}
