"""Momentum distillation in downstream tasks: a momentum model's predictions soften the targets (ALBEF, section 4)."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from diptych.batch import Batch
from diptych.objectives.cross_entropy import SoftTargets
from diptych.objectives.momentum import MomentumSchedule, momentum_update, teacher_of
from diptych.protocols import ChanceLoss, TrainStep


@runtime_checkable
class DistillableStep(TrainStep, Protocol):
    """A downstream training step that also accepts a teacher's logits as soft targets."""

    def batch_logits(self, batch: Batch) -> Tensor:
        """The logits of a batch, for a softmax over their last dimension."""
        ...

    def __call__(self, batch: Batch, counts: dict[str, Tensor], soft: SoftTargets | None = None) -> dict[str, Tensor]:
        """The losses of a batch; `soft`: the teacher's logits, and their weight in the targets."""
        ...


class MomentumDistilled(nn.Module):
    """A downstream training step with its momentum model as teacher.

    `momentum`: of the teacher's moving average. `alpha`: weight of the teacher in the targets, which grows linearly
    from 0 over the first `warmup` steps.
    """

    def __init__(self, student: DistillableStep, momentum: float = 0.995, alpha: float = 0.4, warmup: int = 0):
        super().__init__()
        if not isinstance(student, nn.Module):
            raise TypeError(f"student must be an nn.Module, got a {type(student).__name__}")
        self.student: Any = student
        self.teacher: Any = teacher_of(student)
        self.pace = MomentumSchedule(momentum, alpha, warmup)
        self.weights: dict[str, float] = student.weights
        self.chance_losses: dict[str, ChanceLoss] = student.chance_losses

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return self.student.num_terms(batch)

    def update_teacher(self) -> None:
        """Updates the teacher to the moving average of the student's weights."""
        momentum_update(self.teacher, self.student, self.pace.momentum)

    def losses(self, batch: Batch, counts: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """The student's losses, with the teacher's predictions weighted by `alpha` in the targets."""
        with torch.no_grad():
            soft = SoftTargets(self.teacher.batch_logits(batch), alpha)
        return self.student(batch, counts, soft)

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of a batch; in training the teacher is updated first, once per optimizer step."""
        if self.training and self.pace.begins(batch.step):
            self.update_teacher()
        return self.losses(batch, counts, self.pace.alpha(batch.step))
