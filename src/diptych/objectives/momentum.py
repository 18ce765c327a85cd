"""Momentum distillation: a teacher that is a moving average of its student, and its feature queue (ALBEF, 3.2 and 3.3).

The only objectives with state. It is all in `state_dict`: the teacher's weights and the queue resume exactly, and are
the same on every rank, because features are gathered from all ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.batch import Batch
from diptych.modules.precision import CastWeights
from diptych.modules.tokens import packing
from diptych.objectives.gather import all_gather
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import RandomChoices
from diptych.objectives.views import JointEmbeddings, TeacherOutput, Views

TeacherModel = TypeVar("TeacherModel", bound=nn.Module)


def teacher_of(student: TeacherModel, without: Iterable[str] = ()) -> TeacherModel:
    """A copy of `student` without gradients, tied weights still tied, without the submodules named in `without`."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    for path in without:
        parent, _, name = path.rpartition(".")
        delattr(teacher.get_submodule(parent), name)
    return teacher


@torch.no_grad()
def momentum_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Updates the teacher's parameters: momentum · teacher + (1 − momentum) · student. Buffers do not change."""
    student_parameters = dict(student.named_parameters(remove_duplicate=False))
    for name, parameter in teacher.named_parameters():
        parameter.lerp_(student_parameters[name], 1 - momentum)  # in one pass over both, without a temporary tensor


class MomentumSchedule(nn.Module):
    """The teacher's momentum, and its weight `alpha` in the targets.

    `alpha` grows linearly from 0 over the first `warmup` optimizer steps (ALBEF: to 0.4, over the first epoch). The
    teacher is updated once at the start of each optimizer step, whatever its number of micro-batches.
    """

    def __init__(self, momentum: float = 0.995, alpha: float = 0.4, warmup: int = 0):
        super().__init__()
        self.momentum, self.max_alpha, self.warmup = momentum, alpha, warmup
        self._step: int | None = None  # not saved: the first micro-batch after a resume starts an optimizer step

    def alpha(self, step: int) -> float:
        """The teacher's weight in the targets at optimizer step `step`."""
        return self.max_alpha * min(1.0, step / self.warmup) if self.warmup else self.max_alpha

    def begins(self, step: int) -> bool:
        """Whether this is the first micro-batch of an optimizer step."""
        first, self._step = step != self._step, step
        return first


class Queue(nn.Module):
    """A ring buffer of the teacher's features of the newest `size` pairs.

    Initialised with random unit vectors, as in the official code, with an image id that no image has.
    `with_identities`: also stores each pair's image id (labels["image"]), so that other captions of an image are not
    negatives of it, as in the official code's retrieval; the official pre-training does not.
    """

    image: Float[Tensor, "size width"]
    text: Float[Tensor, "size width"]
    identity: Int[Tensor, " size"]
    place: Int[Tensor, " 1"]

    def __init__(self, size: int, dim: int, with_identities: bool = False):
        super().__init__()
        self.register_buffer("image", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("text", F.normalize(torch.randn(size, dim), dim=1))
        if with_identities:
            self.register_buffer("identity", torch.full((size,), -100))  # no image id is negative
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))
        self.identified = with_identities

    def snapshot(self) -> JointEmbeddings:
        """A copy of the features, which a later `push` does not change; under autocast in its precision."""
        device_type = self.image.device.type
        autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if autocast else self.image.dtype
        return JointEmbeddings(self.image.to(dtype, copy=True), self.text.to(dtype, copy=True))

    @torch.no_grad()
    def push(self, features: JointEmbeddings, identity: Int[Tensor, " b"] | None = None) -> None:
        """Adds the features of all ranks, rank by rank; of more than `size`, the last.

        Raises ValueError if the queue stores image ids and `identity` is None.
        """
        size = len(self.image)
        image, text = (all_gather(x.detach().to(self.image.dtype))[0] for x in features)
        slots = (self.place + torch.arange(len(image), device=image.device))[-size:] % size
        self.image[slots], self.text[slots] = image[-size:], text[-size:]
        if self.identified:
            if identity is None:
                raise ValueError(
                    'this queue stores image ids, but the batch has none: add labels["image"] to the batch'
                )
            self.identity[slots] = all_gather(identity)[0][-size:]
        self.place.add_(len(image)).remainder_(size)


class MomentumDistillation(nn.Module):
    """Pre-training with a momentum model, as one step; objectives find the teacher in `views.teacher`.

    `without`: submodules of the student that the teacher lacks (by default the ITM head, whose loss is not distilled,
    and the scale of the ITC head, since cosines are scaled by the student's). `head`: the ITC head whose features are
    queued.
    """

    def __init__(
        self,
        student: Pretraining,
        queue: Queue | None = None,
        without: Iterable[str] = ("heads.itm", "heads.itc.scale"),
        head: str = "itc",
        momentum: float = 0.995,
        alpha: float = 0.4,
        warmup: int = 0,
    ):
        super().__init__()
        self.student, self.teacher, self.queue, self.head = student, teacher_of(student, without), queue, head
        self._teacher_weights = CastWeights(self.teacher)
        self.pace = MomentumSchedule(momentum, alpha, warmup)
        self.weights, self.chance_losses = student.weights, student.chance_losses

    def views(self, batch: Batch, draws: RandomChoices | None = None, alpha: float | None = None) -> Views:
        """The student's views of a batch, with the teacher's. `alpha`: instead of the schedule's."""
        teacher_views = self.teacher.views(batch, draws)
        alpha = self.pace.alpha(batch.step) if alpha is None else alpha
        queued = None if self.queue is None else self.queue.snapshot()
        image_ids = self.queue.identity.clone() if self.queue is not None and self.queue.identified else None
        return self.student.views(batch, draws, TeacherOutput(teacher_views, alpha, queued, image_ids))

    def num_terms(self, batch: Batch, draws: RandomChoices | None = None) -> dict[str, Tensor]:
        return self.student.num_terms(batch, draws)

    def begin(self, step: int) -> None:
        """Updates the teacher, once per optimizer step (`protocols.StepObserver`).

        Before any forward pass, while FSDP shards student and teacher alike.
        """
        if self.pace.begins(step):
            self.update_teacher()

    def update_teacher(self) -> None:
        """Updates the teacher."""
        momentum_update(self.teacher, self.student, self.pace.momentum)

    def enqueue(self, views: Views) -> None:
        """Adds the teacher's features of a batch to the queue."""
        if self.queue is not None and views.teacher is not None:
            self.queue.push(views.teacher.features(self.head), views.batch.labels.get("image"))

    def forward(
        self, batch: Batch, counts: dict[str, Tensor] | None = None, draws: RandomChoices | None = None
    ) -> dict[str, Tensor]:
        """Losses as from Pretraining. In training, updates the teacher first, and the queue afterwards."""
        if self.training:
            self.begin(batch.step)
        with packing(self.student.pack), self._teacher_weights.used(batch.ids.device.type):
            views = self.views(batch, draws)
            losses = self.student.losses(views, self.num_terms(batch, draws) if counts is None else counts)
            if self.training:
                self.enqueue(views)
        return losses
