"""What a training run can be told. Plain values: recipes and the command line read this file without torch."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Optimizer:
    """AdamW, its learning-rate schedule, and gradient clipping."""

    learning_rate: float = 1e-4  # the peak
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.01  # of all but biases, norms and scalars
    warmup: float = 0.1  # steps; below 1: a share of the run
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # after warm-up; the first two end at zero
    clip: float = 1.0  # largest norm of the whole gradient; 0: no clipping
    head_multiplier: float = 1.0  # of the learning rate, for the heads of pre-training and tasks

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.warmup < 0 or self.clip < 0:
            raise ValueError("learning_rate must be above 0, warmup and clip at least 0")


@dataclass(frozen=True)
class Training:
    """One run of the training loop."""

    steps: int = 1000
    batch: int = 128  # samples per optimizer step, over all ranks and micro-batches
    accumulate: int = 1  # micro-batches per optimizer step and rank
    seed: int = 0
    device: str = "auto"  # "auto" prefers cuda, then mps, then cpu
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # "auto": bf16 autocast where the hardware has it, else fp32
    workers: int = 2  # processes per rank that load data
    parallel: Literal["ddp", "fsdp"] = (
        "ddp"  # many ranks: each has all weights, or a part of them, of gradients and AdamW's state
    )
    recompute: bool = (
        False  # blocks' activations are made again on the way back, not kept: less memory, a third more work
    )
    log_every: int = 10  # steps per row of metrics.jsonl
    evaluate_every: int = 0  # steps; 0: at the end only
    checkpoint_every: int = 200  # steps; a shorter run saves at half of its steps
    checkpoint_minutes: float = 5.0  # a checkpoint is also made once so many have passed since the last
    patience: float = 0.3  # steps before a loss on its floor is called stuck; below 1: a share of the run
    max_skipped: float = 0.01  # share of bad samples at which the run stops
    optimizer: Optimizer = Optimizer()

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.checkpoint_minutes > 0:
            raise ValueError(f"checkpoint_minutes must be above 0, not {self.checkpoint_minutes}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, not {self.workers}")

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is due after so many steps: the last one, and at least one before it."""
        return done == self.steps or done % min(self.checkpoint_every, -(-self.steps // 2)) == 0


# Fields a continued run may change: they alter where and how fast it runs and what it reports, not what it computes. `steps` is
# not among them: the schedule depends on it; nor `accumulate`: contrast, hard negatives and hinge compare the samples of a micro-batch.
_WHERE = ("device", "workers", "parallel", "recompute")
_TOLD = ("log_every", "evaluate_every", "checkpoint_every", "checkpoint_minutes", "patience", "max_skipped")
CHANGEABLE = frozenset((*_WHERE, *_TOLD))


# Of what settings mean: to be raised when the same ones come to compute something else. A run from before it was
# written down has version 1.
VERSION = 1


def identity(settings: Training) -> dict[str, Any]:
    """What a continued run must share with the one that began."""
    return {"version": VERSION} | {k: v for k, v in asdict(settings).items() if k not in CHANGEABLE}


def usually(settings: Any) -> dict[str, Any]:
    """What a dataclass holds where nothing is said: every field that has a default, also within fields that have none."""
    found: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.default is not MISSING:
            found[field.name] = asdict(field.default) if is_dataclass(field.default) else field.default  # type: ignore[arg-type]
        elif is_dataclass(value):
            found[field.name] = usually(value)
    return found


def share(value: float, steps: int) -> int:
    """A number of steps that may be given as a share of the run."""
    return round(value * steps) if value < 1 else round(value)
