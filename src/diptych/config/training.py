"""What a training run can be told. Plain values: recipes and the command line read this file without torch."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Annotated, Any, Literal

from diptych.config.validation import (
    Count,
    CountOrNone,
    Range,
    Samples,
    Seed,
    Share,
    ShareBelowOne,
    Steps,
    Text,
    Workers,
    settings,
)


@settings("optimizer")
class Optimizer:
    """AdamW, its learning-rate schedule, and gradient clipping."""

    learning_rate: Annotated[float, Range(0, 100, "low")] = 1e-4  # the peak
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.98)
    eps: Annotated[float, Range(0, 1, "low")] = 1e-8
    weight_decay: Annotated[float, Range(0, 100)] = 0.01  # of all but biases, norms and scalars
    warmup: Steps = 0.1  # steps; below 1: a share of the run
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # after warm-up; the first two end at zero
    max_grad_norm: Annotated[float, Range(0, 1e6)] = 1.0  # largest norm of the whole gradient; 0: no clipping
    head_lr_multiplier: Annotated[float, Range(0, 1e4)] = (
        1.0  # of the learning rate, for the heads of pre-training and tasks
    )


@settings()
class Training:
    """One run of the training loop."""

    steps: Count = 1000
    batch_size: Samples = 128  # samples per optimizer step, over all ranks and micro-batches
    grad_accum: Samples = 1  # micro-batches per optimizer step and rank
    seed: Seed = 0
    device: Text = "auto"  # "auto" prefers cuda, then mps, then cpu
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # "auto": bf16 autocast where the hardware has it, else fp32
    workers: Workers = 2  # processes per rank that load data
    parallel: Literal["ddp", "fsdp"] = (
        "ddp"  # many ranks: each has all weights, or a part of them, of gradients and AdamW's state
    )
    activation_checkpointing: bool = (
        False  # blocks' activations are made again on the way back, not kept: less memory, a third more work
    )
    log_every: Count = 10  # steps per row of metrics.jsonl
    evaluate_every: CountOrNone = 0  # steps; 0: at the end only
    checkpoint_every: Count = 200  # steps; a shorter run saves at half of its steps
    checkpoint_minutes: Annotated[float, Range(0, 1e6, "low")] = 5.0  # and once so many have passed since the last
    patience: Steps = 0.3  # steps before a loss on its floor is called stuck; below 1: a share of the run
    max_skipped: Share = 0.01  # share of bad samples at which the run stops
    optimizer: Optimizer = Optimizer()

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is due after so many steps: the last one, and at least one before it."""
        return done == self.steps or done % min(self.checkpoint_every, -(-self.steps // 2)) == 0


# Fields a continued run may change: they alter where and how fast it runs and what it reports, not what it computes. `steps` is
# not among them: the schedule depends on it; nor `accumulate`: contrast, hard negatives and hinge compare the samples of a micro-batch.
_WHERE = ("device", "workers", "parallel", "activation_checkpointing")
_TOLD = ("log_every", "evaluate_every", "checkpoint_every", "checkpoint_minutes", "patience", "max_skipped")
CHANGEABLE = frozenset((*_WHERE, *_TOLD))


# Of what settings mean: to be raised when the same ones come to compute something else. A run from before it was
# written down has version 1.
VERSION = 1


def identity(settings: Training) -> dict[str, Any]:
    """What a continued run must share with the one that began."""
    return {"version": VERSION} | {k: v for k, v in asdict(settings).items() if k not in CHANGEABLE}


def defaults(settings: Any) -> dict[str, Any]:
    """What a dataclass holds where nothing is said: every field that has a default, also within fields that have none."""
    found: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.default is not MISSING:
            found[field.name] = asdict(field.default) if is_dataclass(field.default) else field.default  # type: ignore[arg-type]
        elif is_dataclass(value):
            found[field.name] = defaults(value)
    return found


def steps_of(value: float, steps: int) -> int:
    """A number of steps that may be given as a share of the run."""
    return round(value * steps) if value < 1 else round(value)
