"""One optimizer step: term counts, forward and backward of the micro-batches, gradient clipping, the optimizer."""

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
from diptych.training.distributed import Group, average_scalars, checkpoint_activations, clip_grad_norm, uses_bf16
from diptych.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from diptych.utils.rng import random_words


class OptimizerStep:
    """Optimizer steps of a module.

    The result does not depend on the number of ranks. For losses of single samples it does not depend on the number of
    micro-batches either; losses that compare samples (contrastive, hard negatives, triplet) compare those of one
    micro-batch. Dropout is keyed by (seed, step, rank): runs with it resume exactly, but only without it do two ranks
    equal one.
    """

    def __init__(self, module: nn.Module, settings: Training, group: Group):
        self.module, self.settings, self.group = module.to(group.device).train(), settings, group
        self.step = cast(TrainStep, module)
        if settings.activation_checkpointing:
            checkpoint_activations(module)
        self.parallel = group.wrap(module, settings.parallel)
        self.optimizer = build_optimizer(module, settings.optimizer)  # after sharding: over this rank's shards
        self.is_sharded = group.world > 1 and settings.parallel == "fsdp"
        bf16 = uses_bf16(group.device, settings.precision, module)
        self.autocast = torch.autocast(group.device.type, torch.bfloat16, enabled=bf16)

    def __call__(
        self, step: int, loaded: Sequence[Loaded], diagnostics: Diagnostics, stop: bool = False, save: bool = False
    ) -> tuple[dict[str, float], list[Skipped], bool, bool]:
        """One step, on this rank's micro-batches.

        Returns:
            Mean losses over the global batch, with "learning_rate", "grad_norm" and "samples"; the samples that all
            ranks skipped; whether any rank passed `stop`; whether any rank passed `save`.

        Raises:
            Diverged: A loss or gradient is not finite; no weight has changed.
        """
        seed, options = self.settings.seed, self.settings.optimizer
        torch.manual_seed(int(random_words(seed, step, [self.group.rank], "dropout", 1)[0, 0] >> 1))
        batches = [x.batch.to(self.group.device, non_blocking=True) for x in loaded]
        counts, samples, skipped = self._counts(batches, [s for x in loaded for s in x.skipped])

        if isinstance(self.step, StepObserver):
            self.step.begin(step)
        totals: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            for name, value in self._backward(batch, counts, last=i == len(batches) - 1).items():
                totals[name] = totals[name] + value if name in totals else value
        flags = {" stop": torch.tensor(float(stop)), " save": torch.tensor(float(save))}
        sums = self.group.sum(totals | flags)
        any_stop, any_save = bool(sums.pop(" stop") > 0), bool(sums.pop(" save") > 0)
        row = dict(zip(sums, (torch.stack(list(sums.values())) / self.group.world).tolist(), strict=True))
        diagnostics.check_finite(step, row)

        if self.is_sharded:
            average_scalars(self.module)
        norm = clip_grad_norm(self.module.parameters(), options.max_grad_norm or float("inf"))
        if step == 0 or (step + 1) % self.settings.checkpoint_every == 0:
            diagnostics.check_gradients(step, student_of(self.module))
        if not norm < float("inf"):
            raise Diverged(diagnostics.record_not_finite(step, "the gradient", norm))
        rate = learning_rate(step, self.settings)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return row | {"learning_rate": rate, "grad_norm": norm, "samples": samples}, skipped, any_stop, any_save

    def _counts(self, batches: Sequence[Batch], skipped: list[Skipped]) -> tuple[dict[str, Tensor], int, list[Skipped]]:
        """Terms of each loss in the global batch per rank (DDP averages gradients); sample count; skipped samples."""
        terms: dict[str, Tensor] = {}
        for batch in batches:
            for name, count in self.step.num_terms(batch).items():
                terms[name] = terms[name] + count if name in terms else count
        extra = {" samples": torch.tensor(float(sum(map(len, batches)))), " bad": torch.tensor(float(len(skipped)))}
        counts = self.group.sum(terms | extra)
        samples, bad = int(counts.pop(" samples")), int(counts.pop(" bad"))
        all_skipped = [s for part in self.group.gather(skipped) for s in part] if bad else []
        return {name: count / self.group.world for name, count in counts.items()}, samples, all_skipped

    def _backward(self, batch: Batch, counts: dict[str, Tensor], last: bool) -> dict[str, Tensor]:
        """Accumulates one micro-batch's gradients. DDP reduces them after the last one only, FSDP after each."""
        ddp = self.parallel
        with ddp.no_sync() if isinstance(ddp, DistributedDataParallel) and not last else nullcontext():
            with self.autocast:
                losses: dict[str, Tensor] = ddp(batch, counts)
            torch.stack([weight * losses[name].float() for name, weight in self.step.weights.items()]).sum().backward()
        return {name: value.detach().float() for name, value in losses.items()}
