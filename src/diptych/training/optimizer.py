"""The optimizer, AdamW or SGD, and the learning-rate schedule as a function of the step."""

from __future__ import annotations

import math
from inspect import unwrap

import torch
from torch import nn

from diptych.config.training import Optimizer, Training, steps_of
from diptych.protocols import student_of
from diptych.training.distributed import is_sharded
from diptych.training.parameter_groups import parameter_groups


class EagerAdamW(torch.optim.AdamW):
    """torch's AdamW, without the wrappers for torch.compile that import torch._dynamo: a second before the first step.

    Outside of torch.compile they change nothing.
    """

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class EagerSGD(torch.optim.SGD):
    """torch's SGD, without the wrappers for torch.compile (see `EagerAdamW`)."""

    add_param_group = unwrap(torch.optim.SGD.add_param_group)
    zero_grad = unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


def build_optimizer(module: nn.Module, settings: Optimizer) -> EagerAdamW | EagerSGD:
    """The optimizer over the trainable parameters of a module; each group has a `multiplier` of the learning rate.

    Raises ValueError: see `parameter_groups`.
    """
    module = student_of(module)  # a momentum teacher has no gradients
    groups = parameter_groups(module, settings)
    # one kernel for all parameters; on CPU, 8 times faster than the Python loop
    fused = next(module.parameters()).device.type in ("cpu", "cuda")
    if settings.name == "sgd":
        # torch's fused SGD does not take sharded parameters, and its foreach kernels do not mix them with unsharded ones
        fused = fused and not any(is_sharded(p) for p in module.parameters())
        rate, momentum = settings.learning_rate, settings.momentum
        return EagerSGD(groups, lr=rate, momentum=momentum, fused=fused, foreach=False)
    return EagerAdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=fused)


def learning_rate(step: int, training: Training) -> float:
    """The learning rate of a step in ``0 … training.steps - 1``: linear warm-up from above zero, then the schedule.

    With `rate_per_epoch`, that of the start of the step's epoch. Raises ValueError if the epochs are not known.
    """
    settings, steps = training.optimizer, training.steps
    warmup = steps_of(settings.warmup, steps)
    position = math.floor(training.epochs_done(step)) * steps / training.epochs if settings.rate_per_epoch else step
    if position < warmup:
        return settings.learning_rate * (position + 1) / warmup
    left = (steps - position) / max(1, steps - warmup)  # from 1 to just above 0
    match settings.schedule:
        case "constant":
            factor = 1.0
        case "drops":
            factor = settings.drop_factor ** sum(position >= steps_of(share, steps) for share in settings.drops)
        case "linear":
            factor = _down_to(settings.final_rate, left)
        case "cosine":
            factor = _down_to(settings.final_rate, 0.5 * (1 - math.cos(math.pi * left)))
    return settings.learning_rate * factor


def _down_to(final: float, factor: float) -> float:
    """A factor that falls from 1 to 0, made to fall to `final`."""
    return final + (1 - final) * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of each parameter group to `rate` times the group's multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]
