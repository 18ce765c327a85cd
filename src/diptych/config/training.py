"""Settings of the optimizer and the training loop. Torch-free: recipes and the command line import this file."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Annotated, Any, Literal

from diptych.config.validation import (
    Count,
    CountOrZero,
    Fraction,
    FractionBelowOne,
    Range,
    Samples,
    Seed,
    Steps,
    Text,
    Workers,
    settings,
)


@settings("optimizer")
class Optimizer:
    """AdamW, its learning-rate schedule, and gradient clipping."""

    learning_rate: Annotated[float, Range(0, 100, "low")] = 1e-4  # peak learning rate
    betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.98)  # AdamW's betas
    eps: Annotated[float, Range(0, 1, "low")] = 1e-8  # AdamW's eps
    weight_decay: Annotated[float, Range(0, 100)] = 0.01  # not applied to biases, norms and scalars
    warmup: Steps = 0.1  # warm-up steps; below 1: a share of the run
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # after warm-up; linear and cosine end at zero
    max_grad_norm: Annotated[float, Range(0, 1e6)] = 1.0  # gradient clipping by global norm; 0: no clipping
    head_lr_multiplier: Annotated[float, Range(0, 1e4)] = 1.0  # learning rate of heads, relative to the rest


@settings()
class Training:
    """Settings of the training loop."""

    steps: Count = 1000  # optimizer steps
    batch_size: Samples = 128  # samples per optimizer step, over all ranks and micro-batches
    grad_accum: Samples = 1  # micro-batches per optimizer step and rank
    seed: Seed = 0  # random seed
    device: Text = "auto"  # "auto" prefers cuda, then mps, then cpu
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # "auto": bf16 autocast where it is faster, else fp32
    workers: Workers = 2  # data-loading processes per rank
    # several ranks: ddp replicates the weights; fsdp shards weights, gradients and optimizer state (FSDP2)
    parallel: Literal["ddp", "fsdp"] = "ddp"
    activation_checkpointing: bool = False  # recompute activations in backward: less memory, about a third more compute
    log_every: Count = 10  # steps per row of metrics.jsonl
    evaluate_every: CountOrZero = 0  # steps between evaluations; 0: only at the end
    checkpoint_every: Count = 200  # steps between checkpoints; a shorter run saves after half of its steps
    checkpoint_minutes: Annotated[float, Range(0, 1e6, "low")] = 5.0  # also save after this many minutes
    patience: Steps = 0.3  # steps at chance level before a loss is reported as stuck; below 1: a share of the run
    max_skipped: Fraction = 0.01  # share of unusable samples above which the run stops
    optimizer: Optimizer = Optimizer()

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is due after `done` steps: after the last step, and at least once before it."""
        return done == self.steps or done % min(self.checkpoint_every, -(-self.steps // 2)) == 0


# Fields that may change when a run is resumed: they affect where and how fast it runs and what it reports, not what it
# computes. `steps` is not among them because the schedule depends on it; nor is `grad_accum`, because the contrastive
# loss, hard negatives and the triplet loss compare the samples of a micro-batch.
_PLACEMENT = ("device", "workers", "parallel", "activation_checkpointing")
_REPORTING = ("log_every", "evaluate_every", "checkpoint_every", "checkpoint_minutes", "patience", "max_skipped")
CHANGEABLE = frozenset((*_PLACEMENT, *_REPORTING))


# Version of the settings' meaning: raise it when the same settings come to compute something else.
VERSION = 1


def identity(settings: Training) -> dict[str, Any]:
    """Settings that a resumed run must share with the run that it resumes."""
    return {"version": VERSION} | {k: v for k, v in asdict(settings).items() if k not in CHANGEABLE}


def defaults(settings: Any) -> dict[str, Any]:
    """Default values of a dataclass's fields, also within nested dataclasses that have no default themselves."""
    values: dict[str, Any] = {}
    for field in fields(settings):
        value, default = getattr(settings, field.name), field.default
        if is_dataclass(default) and not isinstance(default, type):
            values[field.name] = asdict(default)
        elif default is not MISSING:
            values[field.name] = default
        elif is_dataclass(value):
            values[field.name] = defaults(value)
    return values


def steps_of(value: float, steps: int) -> int:
    """Number of steps for a setting that is a count, or below 1 a share of the run's `steps`."""
    return round(value * steps) if value < 1 else round(value)
