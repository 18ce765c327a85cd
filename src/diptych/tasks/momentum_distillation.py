"""A downstream step whose targets a momentum model softens (ALBEF, section 4)."""

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
    """A downstream step whose targets a teacher of its kind can soften."""

    def answer(self, batch: Batch) -> Tensor:
        """Logits, before the softmax over their last dimension."""
        ...

    def __call__(self, batch: Batch, counts: dict[str, Tensor], soft: SoftTargets | None = None) -> dict[str, Tensor]:
        """As any step; `soft`: what a teacher answered."""
        ...


class MomentumDistilled(nn.Module):
    """A downstream step beside its momentum model, which softens its targets"""

    def __init__(self, student: DistillableStep, momentum: float = 0.995, alpha: float = 0.4, warmup: int = 0):
        super().__init__()
        if not isinstance(student, nn.Module):
            raise TypeError(f"a {type(student).__name__} is no module")
        self.student: Any = student
        self.teacher: Any = teacher_of(student)
        self.pace = MomentumSchedule(momentum, alpha, warmup)
        self.weights: dict[str, float] = student.weights
        self.chance_losses: dict[str, ChanceLoss] = student.chance_losses

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return self.student.num_terms(batch)

    def follow(self) -> None:
        """The teacher's step."""
        momentum_update(self.teacher, self.student, self.pace.momentum)

    def losses(self, batch: Batch, counts: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """The student's, the teacher being believed to the share `alpha`."""
        with torch.no_grad():
            soft = SoftTargets(self.teacher.answer(batch), alpha)
        return self.student(batch, counts, soft)

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """In training the teacher follows first."""
        if self.training and self.pace.begins(batch.step):
            self.follow()
        return self.losses(batch, counts, self.pace.alpha(batch.step))
