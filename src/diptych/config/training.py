"""Settings of the optimizer and the training loop. Torch-free: recipes and the command line import this file."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from math import ceil, floor
from typing import Annotated, Any, Literal

from diptych.config.validation import (
    Count,
    CountOrZero,
    Epochs,
    Fraction,
    FractionBelowOne,
    InnerFraction,
    PositiveFraction,
    Range,
    Samples,
    Seed,
    Steps,
    Text,
    Workers,
    preview,
    settings,
)

_FACTORS = Range(0, 1e4, "low")


@settings("optimizer")
class Optimizer:
    """The optimizer, its learning-rate schedule, and gradient clipping."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Range(0, 100, "low")] = 1e-4  # peak learning rate
    betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.98)  # AdamW's betas
    eps: Annotated[float, Range(0, 1, "low")] = 1e-8  # AdamW's eps
    momentum: FractionBelowOne = 0.9  # SGD's momentum
    # not applied to biases, norms and scalars; AdamW's is decoupled, SGD's is added to the gradient (as in torch)
    weight_decay: Annotated[float, Range(0, 100)] = 0.01
    decay_all: bool = False  # weight decay on biases, norms and scalars too
    warmup: Steps = 0.1  # warm-up steps; below 1: a share of the run
    # after warm-up; linear and cosine end at `final_rate`, drops multiplies the rate by `drop_factor` at each of `drops`
    schedule: Literal["linear", "cosine", "constant", "drops"] = "linear"
    final_rate: FractionBelowOne = 0.0  # learning rate at the end of linear and cosine, as a share of the peak
    drops: tuple[InnerFraction, ...] = ()  # where the rate drops, as shares of the run
    drop_factor: PositiveFraction = 0.1  # factor on the learning rate at each drop
    rate_per_epoch: bool = False  # keep the learning rate of an epoch's start throughout the epoch
    # factor on the learning rate per block below the last one (BEiT); embeddings have the lowest rate, heads the full one
    layer_decay: PositiveFraction = 1.0
    # learning rates relative to the rest, as PATTERN=FACTOR with patterns of parameter names; the last match counts
    part_rates: tuple[Text, ...] = ()
    max_grad_norm: Annotated[float, Range(0, 1e6)] = 1.0  # gradient clipping by global norm; 0: no clipping

    def __post_init__(self) -> None:
        if bool(self.drops) != (self.schedule == "drops"):
            raise ValueError(
                f"optimizer.drops and optimizer.schedule drops need each other: got drops {self.drops} and schedule "
                f"{self.schedule}; set both, such as --optimizer.schedule drops --optimizer.drops 0.6 0.8"
            )
        if self.final_rate and self.schedule not in ("linear", "cosine"):
            raise ValueError(
                f"optimizer.final_rate is of linear and cosine schedules: got {self.final_rate} with schedule "
                f"{self.schedule}; set optimizer.final_rate to 0"
            )
        self.parsed_part_rates()

    def parsed_part_rates(self) -> list[tuple[str, float]]:
        """Pattern and factor of each item of `part_rates`. Raises ValueError for one that is no PATTERN=FACTOR."""
        parsed = []
        for item in self.part_rates:
            pattern, equals, factor = item.rpartition("=")
            try:
                parsed.append((pattern, float(factor)))
            except ValueError:
                equals = ""
            if not (pattern and equals and parsed[-1][1] in _FACTORS):
                raise ValueError(
                    f"optimizer.part_rates: expected PATTERN=FACTOR with a factor in {_FACTORS}, such as head=10: "
                    f"got {preview(item)}"
                )
        return parsed


@settings()
class Training:
    """Settings of the training loop."""

    steps: Count = 1000  # optimizer steps; of a run counted by epochs, set when it starts
    epochs: Epochs = 0.0  # passes over the training examples, in place of `steps`; 0: count by steps
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
    evaluate_every: CountOrZero = 0  # steps between validations; 0: only at the end
    evaluate_epochs: Epochs = 0.0  # epochs between validations, whatever `evaluate_every` is; 0: by steps
    # validation metric, such as vqa/score or itm, by which the best weights are saved; empty: the last weights are
    keep_best: str = ""
    stop_after: CountOrZero = 0  # validations without a better `keep_best` after which the run ends; 0: never
    checkpoint_every: Count = 200  # steps between checkpoints; a shorter run saves after half of its steps
    checkpoint_minutes: Annotated[float, Range(0, 1e6, "low")] = 5.0  # also save after this many minutes
    patience: Steps = 0.3  # steps at chance level before a loss is reported as stuck; below 1: a share of the run
    max_skipped: Fraction = 0.01  # share of unusable samples above which the run stops
    optimizer: Optimizer = Optimizer()

    def __post_init__(self) -> None:
        if self.stop_after and not self.keep_best:
            raise ValueError(
                f"stop_after is {self.stop_after} and keep_best is empty: name in keep_best the validation metric that "
                "must improve, or set stop_after to 0"
            )

    @property
    def needs_epochs(self) -> bool:
        """Whether a setting counts by epochs, for which the number of examples must be known."""
        return bool(self.epochs or self.evaluate_epochs or self.optimizer.rate_per_epoch)

    def for_examples(self, num_examples: int) -> Training:
        """The settings for a number of training examples: `steps` from `epochs`, or `epochs` from `steps` if needed.

        A run of `epochs` has ceil(epochs x examples / batch size) steps.
        """
        if self.epochs:
            # rounded, as 0.1 x 30 / 3 is above 1
            return replace(self, steps=max(1, ceil(round(self.epochs * num_examples / self.batch_size, 6))))
        if self.needs_epochs:
            return replace(self, epochs=self.steps * self.batch_size / num_examples)
        return self

    def epochs_done(self, done: int) -> float:
        """Epochs after `done` steps. The run has `epochs` of them, which `for_examples` sets."""
        if not self.epochs:
            raise ValueError("the number of examples is not known, and the settings count by epochs: set epochs")
        return done * self.epochs / self.steps

    def validates(self, done: int) -> bool:
        """Whether a validation is due after `done` steps: after the last one, and by the two intervals."""
        if done == self.steps:
            return True
        if self.evaluate_epochs:
            before, now = (floor(self.epochs_done(n) / self.evaluate_epochs) for n in (done - 1, done))
            return now > before
        return bool(self.evaluate_every) and done % self.evaluate_every == 0

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is due after `done` steps: after the last step, and at least once before it."""
        return done == self.steps or done % min(self.checkpoint_every, -(-self.steps // 2)) == 0


# Fields that may change when a run is resumed: they affect where and how fast it runs and what it reports, not what it
# computes. `steps` is not among them because the schedule depends on it; nor is `grad_accum`, because the contrastive
# loss, hard negatives and the triplet loss compare the samples of a micro-batch.
_PLACEMENT = ("device", "workers", "parallel", "activation_checkpointing")
_REPORTING = (
    "log_every",
    "evaluate_every",
    "evaluate_epochs",
    "checkpoint_every",
    "checkpoint_minutes",
    "patience",
    "max_skipped",
)
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
