"""What the training loop needs to know of anything that is trained: a module from a batch to named losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from diptych.inputs import Batch


@dataclass(frozen=True)
class Floor:
    """The loss of a model that has learned nothing but the answers' prior, and why a loss may stay there."""

    value: float  # in nats, the unit of the loss it belongs to
    name: str  # "entropy of the matching prior"
    cause: str  # what usually keeps a loss on it


@runtime_checkable
class Begins(Protocol):
    """A step whose state moves once per optimizer step, before any forward pass of it (a momentum teacher)."""

    def begin(self, step: int) -> None:
        """Moves it, where it has not been moved for optimizer step number `step`."""
        ...


@dataclass(frozen=True)
class Among:
    """The samples that one can be compared with: those of this rank's micro-batch, of all ranks', and those in a queue."""

    own: int
    everywhere: int
    queued: int = 0


@runtime_checkable
class ComparesSamples(Protocol):
    """A step some of whose losses compare samples with one another: with no other sample such a loss is 0 and means nothing."""

    def compared_samples(self, among: Among) -> dict[str, int]:
        """By loss: how many samples each one is compared with, itself among them."""
        ...


@runtime_checkable
class Grown(Protocol):
    """A part of a step that keeps more than it did when older checkpoints were written."""

    def unsaid(self) -> dict[str, Tensor]:
        """What those do not tell, by its name in this part, as it is to be taken then."""
        ...


@runtime_checkable
class Step(Protocol):
    """A module that computes losses. Means over what a *global* batch holds need counts from every rank and
    micro-batch first, so a step says its counts before it is run, and is given the global ones.
    """

    weights: dict[str, float]  # the losses that are summed and trained, each with its weight
    floors: dict[str, Floor]  # what each loss starts from; may lack some

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """How many terms each loss and metric averages over on this batch; 0-d float32. Runs no model."""
        ...

    def __call__(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """{name: this batch's total / counts[name]}. Names that are not in `weights` are metrics, detached."""
        ...


def pupil(module: nn.Module) -> nn.Module:
    """What of a step is kept and used once it is trained: of a student beside its teacher the student, else the step."""
    student = getattr(module, "student", None)
    return student if isinstance(student, nn.Module) else module
