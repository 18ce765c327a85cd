"""One optimizer step: counts, micro-batches forward and backward, clipping, AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diptych.batch import Batch
from diptych.config.training import Training
from diptych.data.loader import Loaded, Skipped
from diptych.protocols import StepObserver, TrainStep, student_of
from diptych.training.diagnostics import Diagnostics, Diverged
from diptych.training.distributed import Group, average_scalars, checkpoint_activations, clip, takes_bf16
from diptych.training.optimizer import adamw, learning_rate, set_learning_rate
from diptych.utils.rng import random_words


class OptimizerStep:
    """Makes one optimizer step of a module at a time, the same however its batch is cut into ranks, and, for losses that look at
    each sample by itself, into micro-batches; those that compare samples (contrast, hard negatives, hinge) see one micro-batch.

    (Dropout is keyed by (seed, step, rank): a run resumes exactly with it, but only without it are two ranks one.)
    """

    def __init__(self, module: nn.Module, settings: Training, group: Group):
        self.module, self.settings, self.group = module.to(group.device).train(), settings, group
        self.step = cast(TrainStep, module)
        if settings.activation_checkpointing:
            checkpoint_activations(module)
        self.parallel = group.wrap(module, settings.parallel)
        self.optimizer = adamw(module, settings.optimizer)  # of what FSDP has left to this rank
        self.divided = group.world > 1 and settings.parallel == "fsdp"
        bf16 = takes_bf16(group.device, settings.precision)
        self.autocast = torch.autocast(group.device.type, torch.bfloat16, enabled=bf16)

    def __call__(
        self, step: int, loaded: Sequence[Loaded], doctor: Diagnostics, stop: bool = False, save: bool = False
    ) -> tuple[dict[str, float], list[Skipped], bool, bool]:
        """Means over the global batch with "learning_rate", "grad_norm" and "samples"; what all ranks skipped; whether
        any rank was told to `stop`, or is due to `save`. Raises Diverged, before anything is changed, where a loss or gradient is not finite.
        """
        seed, steps, options = self.settings.seed, self.settings.steps, self.settings.optimizer
        torch.manual_seed(int(random_words(seed, step, [self.group.rank], "dropout", 1)[0, 0] >> 1))
        batches = [x.batch.to(self.group.device, non_blocking=True) for x in loaded]
        counts, samples, skipped = self._counts(batches, [s for x in loaded for s in x.skipped])

        if isinstance(self.step, StepObserver):
            self.step.begin(step)
        totals: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            for name, value in self._backward(batch, counts, last=i == len(batches) - 1).items():
                totals[name] = totals[name] + value if name in totals else value
        found = self.group.sum(totals | {" stop": torch.tensor(float(stop)), " save": torch.tensor(float(save))})
        stopped, due = bool(found.pop(" stop") > 0), bool(found.pop(" save") > 0)
        row = dict(zip(found, (torch.stack(list(found.values())) / self.group.world).tolist(), strict=True))
        doctor.finite(step, row)

        if self.divided:
            average_scalars(self.module)
        norm = clip(self.module.parameters(), options.max_grad_norm or float("inf"))
        if step == 0 or (step + 1) % self.settings.checkpoint_every == 0:
            doctor.gradients(step, student_of(self.module))
        if not norm < float("inf"):
            raise Diverged(doctor.not_finite(step, "the gradient", norm))
        rate = learning_rate(step, steps, options)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return row | {"learning_rate": rate, "grad_norm": norm, "samples": samples}, skipped, stopped, due

    def _counts(self, batches: Sequence[Batch], skipped: list[Skipped]) -> tuple[dict[str, Tensor], int, list[Skipped]]:
        """Terms per loss, over the global batch and per rank (DDP averages gradients); samples; and what was skipped."""
        mine: dict[str, Tensor] = {}
        for batch in batches:
            for name, count in self.step.num_terms(batch).items():
                mine[name] = mine[name] + count if name in mine else count
        facts = {" samples": torch.tensor(float(sum(map(len, batches)))), " bad": torch.tensor(float(len(skipped)))}
        counts = self.group.sum(mine | facts)
        samples, bad = int(counts.pop(" samples")), int(counts.pop(" bad"))
        everyone = [s for part in self.group.gather(skipped) for s in part] if bad else []
        return {name: count / self.group.world for name, count in counts.items()}, samples, everyone

    def _backward(self, batch: Batch, counts: dict[str, Tensor], last: bool) -> dict[str, Tensor]:
        """Adds one micro-batch's gradients; DDP exchanges gradients at the last one only, FSDP at each, to keep but a part."""
        ddp = self.parallel
        with ddp.no_sync() if isinstance(ddp, DistributedDataParallel) and not last else nullcontext():
            with self.autocast:
                losses: dict[str, Tensor] = ddp(batch, counts)
            torch.stack([weight * losses[name].float() for name, weight in self.step.weights.items()]).sum().backward()
        return {name: value.detach().float() for name, value in losses.items()}
