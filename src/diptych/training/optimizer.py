"""AdamW with the parameter groups of the BERT family, and the learning-rate schedule as a function of the step."""

from __future__ import annotations

import math
from inspect import unwrap

import torch
from torch import nn

from diptych.config.training import Optimizer, steps_of
from diptych.modules.position import RelativePositions
from diptych.protocols import student_of
from diptych.training.distributed import is_sharded

_HEADS = ("heads.", "head.", "rank.")  # parameters of pre-training and task heads, outside `model`
_NOT_DECAYED = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm, RelativePositions)


def decayed(module: nn.Module) -> dict[str, bool]:
    """Whether weight decay applies to each trainable parameter: to all but biases, norms and scalars.

    As in ViLT (vilt_utils.set_schedule), class tokens, position and type embeddings are decayed; as in VLMo
    (vlmo_utils.set_schedule), relative positions count as biases.
    """
    return {
        f"{prefix}.{name}" if prefix else name: not (
            name.endswith("bias") or isinstance(m, _NOT_DECAYED) or p.dim() == 0
        )
        for prefix, m in module.named_modules()
        for name, p in m.named_parameters(recurse=False)
        if p.requires_grad
    }


class EagerAdamW(torch.optim.AdamW):
    """torch's AdamW, without the wrappers for torch.compile that import torch._dynamo: a second before the first step.

    Outside of torch.compile they change nothing.
    """

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


def adamw(module: nn.Module, settings: Optimizer) -> EagerAdamW:
    """AdamW over the trainable parameters of a module; each group has a `multiplier` of the learning rate.

    Raises ValueError if no parameter is trainable.
    """
    module = student_of(module)  # a momentum teacher has no gradients
    rule = decayed(module)
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, p in module.named_parameters():  # a tied parameter is listed once, under its first name
        if p.requires_grad:
            # fused kernels take either sharded or unsharded parameters, not both
            kind = (rule[name], name.startswith(_HEADS), is_sharded(p))
            groups.setdefault(kind, []).append(p)
    if not groups:
        raise ValueError("nothing to train: no parameter requires a gradient")
    return EagerAdamW(
        [
            {
                "params": params,
                "weight_decay": settings.weight_decay if decay else 0.0,
                "multiplier": settings.head_lr_multiplier if head else 1.0,
            }
            for (decay, head, _), params in groups.items()
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        # one kernel for all parameters; on CPU, 8 times faster than the Python loop
        fused=next(module.parameters()).device.type in ("cpu", "cuda"),
    )


def learning_rate(step: int, steps: int, settings: Optimizer) -> float:
    """The learning rate of a step in ``0 … steps - 1``: linear warm-up from above zero, then the decay."""
    warmup = steps_of(settings.warmup, steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    left = (steps - step) / max(1, steps - warmup)  # from 1 to just above 0
    match settings.schedule:
        case "constant":
            factor = 1.0
        case "linear":
            factor = left
        case "cosine":
            factor = 0.5 * (1 - math.cos(math.pi * left))
    return settings.learning_rate * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of each parameter group to `rate` times the group's multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]
