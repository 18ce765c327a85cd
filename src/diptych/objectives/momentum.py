"""The momentum model: a teacher that follows its student slowly, and what it remembers (ALBEF, sections 3.2 and 3.3).

The only objectives with a state. It is all in `state_dict`: the teacher's weights and the queue go on exactly after a kill,
and are the same on every rank, because what is put in comes from all ranks.
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
from diptych.modules.tokens import packing
from diptych.objectives.gather import all_gather
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.sampling import RandomChoices
from diptych.objectives.views import Features, TeacherOutput, Views

TeacherModel = TypeVar("TeacherModel", bound=nn.Module)


def teacher_of(student: TeacherModel, without: Iterable[str] = ()) -> TeacherModel:
    """A copy that no gradient reaches, tied weights tied again; the parts named in `without` are left out of it."""
    twin = copy.deepcopy(student).requires_grad_(False)
    for path in without:
        parent, _, name = path.rpartition(".")
        delattr(twin.get_submodule(parent), name)
    return twin


@torch.no_grad()
def momentum_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Each of the teacher's parameters: momentum · itself + (1 − momentum) · the student's. Buffers stay."""
    theirs = dict(student.named_parameters(remove_duplicate=False))
    for name, parameter in teacher.named_parameters():
        parameter.mul_(momentum).add_(theirs[name] * (1 - momentum))


class MomentumSchedule(nn.Module):
    """How fast a teacher follows, and how much it is believed: a share `alpha` of the targets, which grows from 0 over
    the first `warmup` steps (ALBEF: 0.4, over the first epoch).

    The teacher takes one step at the start of each optimizer step, however many micro-batches that has.
    """

    def __init__(self, momentum: float = 0.995, alpha: float = 0.4, warmup: int = 0):
        super().__init__()
        self.momentum, self.most, self.warmup = momentum, alpha, warmup
        self._step: int | None = None  # no state: the first micro-batch after a resume begins an optimizer step

    def alpha(self, step: int) -> float:
        return self.most * min(1.0, step / self.warmup) if self.warmup else self.most

    def begins(self, step: int) -> bool:
        """Whether this is the first micro-batch of an optimizer step."""
        first, self._step = step != self._step, step
        return first


class Queue(nn.Module):
    """The newest `size` pairs of features that the teacher made; the oldest are overwritten.

    `identified`: it remembers which image each pair was of (labels["image"]), so that its other captions are no
    negatives of it, as in the official code's retrieval; its pre-training does not. Begins with random unit vectors, as the
    official code, which are of no image.
    """

    image: Float[Tensor, "size width"]
    text: Float[Tensor, "size width"]
    identity: Int[Tensor, " size"]
    place: Int[Tensor, " 1"]

    def __init__(self, size: int, dim: int, identified: bool = False):
        super().__init__()
        self.register_buffer("image", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("text", F.normalize(torch.randn(size, dim), dim=1))
        if identified:
            self.register_buffer("identity", torch.full((size,), -100))  # below all that images have
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))
        self.identified = identified

    def missing_defaults(self) -> dict[str, Tensor]:
        """What checkpoints lack from before every run's queue was identified (`step.Grown`): what they queued is of no image."""
        return {"identity": torch.full_like(self.identity, -100)} if self.identified else {}

    @torch.no_grad()
    def push(self, features: Features, identity: Int[Tensor, " b"] | None = None) -> None:
        """Puts in the features of all ranks, rank by rank; of more than fit, the last."""
        size = len(self.image)
        image, text = (all_gather(x.detach().to(self.image.dtype))[0] for x in features)
        places = (self.place + torch.arange(len(image), device=image.device))[-size:] % size
        self.image[places], self.text[places] = image[-size:], text[-size:]
        if self.identified:
            if identity is None:
                raise ValueError('this queue remembers identities: the batch must tell them (labels["image"])')
            self.identity[places] = all_gather(identity)[0][-size:]
        self.place.add_(len(image)).remainder_(size)


class MomentumDistillation(nn.Module):
    """Pretraining beside its momentum model, as one step: objectives read the teacher in `views.teacher`.

    `without`: parts of the student that the teacher does not have ("heads.match", "heads.contrast.scale": it has no
    opinion on matching, and cosines are scaled as the student's). `head`: whose features are queued.
    """

    def __init__(
        self,
        student: Pretraining,
        queue: Queue | None = None,
        without: Iterable[str] = ("heads.match", "heads.contrast.scale"),
        head: str = "contrast",
        momentum: float = 0.995,
        alpha: float = 0.4,
        warmup: int = 0,
    ):
        super().__init__()
        self.student, self.teacher, self.queue, self.head = student, teacher_of(student, without), queue, head
        self.pace = MomentumSchedule(momentum, alpha, warmup)
        self.weights, self.chance_losses = student.weights, student.chance_losses

    def views(self, batch: Batch, draws: RandomChoices | None = None, alpha: float | None = None) -> Views:
        """The student's views of a batch, the teacher's among them. `alpha`: instead of the pace's."""
        theirs = self.teacher.views(batch, draws)
        believed = self.pace.alpha(batch.step) if alpha is None else alpha
        queued = None if self.queue is None else Features(self.queue.image.clone(), self.queue.text.clone())
        known = self.queue.identity.clone() if self.queue is not None and self.queue.identified else None
        return self.student.views(batch, draws, TeacherOutput(theirs, believed, queued, known))

    def num_terms(self, batch: Batch, draws: RandomChoices | None = None) -> dict[str, Tensor]:
        return self.student.num_terms(batch, draws)

    def begin(self, step: int) -> None:
        """The teacher's step, once per optimizer step (`step.Begins`): before any pass, while FSDP has both divided alike."""
        if self.pace.begins(step):
            self.follow()

    def follow(self) -> None:
        """The teacher's step."""
        momentum_update(self.teacher, self.student, self.pace.momentum)

    def remember(self, views: Views) -> None:
        """Queues what the teacher made of a batch."""
        if self.queue is not None and views.teacher is not None:
            self.queue.push(views.teacher.features(self.head), views.batch.labels.get("image"))

    def forward(
        self, batch: Batch, counts: dict[str, Tensor] | None = None, draws: RandomChoices | None = None
    ) -> dict[str, Tensor]:
        """As Pretraining. In training the teacher follows first, and remembers the batch afterwards."""
        if self.training:
            self.begin(batch.step)
        with packing(self.student.pack):
            views = self.views(batch, draws)
            losses = self.student.losses(views, self.num_terms(batch, draws) if counts is None else counts)
            if self.training:
                self.remember(views)
        return losses
